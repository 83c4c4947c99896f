"""The codebook of one frozen matrix and one learned layer."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vqtok import quantizers
from vqtok.config import TokenizerConfig
from vqtok.quantizers.simvq import SimVQuantizer


def make(size: int = 8, dim: int = 2, normalize: bool = False, beta: float = 0.25) -> SimVQuantizer:
    config = TokenizerConfig(
        quantizer="simvq", codebook_size=size, code_dim=dim, normalize=normalize, beta=beta
    )
    quantizer = quantizers.build_quantizer(config)
    assert isinstance(quantizer, SimVQuantizer)
    return quantizer


def as_grid(vectors: Tensor) -> Tensor:
    """(N, D) -> (1, D, 1, N)."""
    return vectors.T[None, :, None]


@torch.no_grad()
def place(quantizer: SimVQuantizer) -> None:
    """Rows (1, 0), (0, 1), (1, 1), (-1, 0), times a layer that doubles the
    first number and adds (0, 3).
    """
    quantizer.codebook.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [-1.0, 0.0]]))
    quantizer.layer.weight.copy_(torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
    quantizer.layer.bias.copy_(torch.tensor([0.0, 3.0]))


ENTRIES = torch.tensor([[2.0, 3.0], [0.0, 4.0], [2.0, 4.0], [-2.0, 3.0]])


def test_entries_are_the_product_by_hand():
    quantizer = make(4)
    place(quantizer)
    torch.testing.assert_close(
        quantizer.lookup(torch.arange(4).reshape(1, 1, 1, 4)), as_grid(ENTRIES)
    )
    quantized = quantizer(as_grid(torch.tensor([[2.1, 2.9], [0.1, 5.0], [3.0, 3.6], [-9.0, -9.0]])))
    assert quantized.indices.flatten().tolist() == [0, 1, 2, 3]
    torch.testing.assert_close(quantized.vectors, as_grid(ENTRIES))


@pytest.mark.parametrize("beta", [0.1, 2.0])
def test_loss_and_gradients_by_hand(beta: float):
    quantizer = make(4, beta=beta)
    place(quantizer)
    # codes 0 and 1; half a unit off in the first number, then in the second
    z = torch.tensor([[2.5, 3.0], [0.0, 4.5]])
    grid = as_grid(z).requires_grad_()
    quantized = quantizer(grid)
    assert quantized.loss.detach() == pytest.approx((1 + beta) * 0.5 / 4)
    quantized.loss.backward()
    assert grid.grad is not None
    torch.testing.assert_close(
        grid.grad, as_grid(beta * 2 / 4 * torch.tensor([[0.5, 0.0], [0.0, 0.5]]))
    )
    # Of the other term || C W + b - sg[z] ||^2 / 4:
    # the entries' slopes (-1/4, 0) and (0, -1/4), outer rows (1, 0) and (0, 1).
    torch.testing.assert_close(
        quantizer.layer.weight.grad, torch.tensor([[-0.25, 0.0], [0.0, -0.25]])
    )
    torch.testing.assert_close(quantizer.layer.bias.grad, torch.tensor([-0.25, -0.25]))
    # the matrix is frozen
    assert [name for name, _ in quantizer.named_parameters()] == ["layer.weight", "layer.bias"]


def test_the_gradient_passes_straight_through():
    quantizer = make(dim=4)
    z, weights = torch.randn(2, 4, 3, 5, requires_grad=True), torch.randn(2, 4, 3, 5)
    (quantizer(z).vectors * weights).sum().backward()
    assert z.grad is not None
    assert torch.equal(z.grad, weights)
    assert all(p.grad is None or not p.grad.any() for p in quantizer.parameters())


@pytest.mark.parametrize("normalize", [True, False])
def test_every_code_comes_back(normalize: bool):
    torch.manual_seed(0)
    quantizer = make(300, 6, normalize)
    grid = torch.arange(300).reshape(2, 1, 10, 15)
    vectors = quantizer.lookup(grid)
    quantized = quantizer(vectors)
    assert torch.equal(quantized.indices, grid)
    torch.testing.assert_close(quantized.vectors, vectors)


@pytest.mark.parametrize(("size", "dim"), [(16, 1), (16, 4), (1024, 8), (512, 64)])
@pytest.mark.parametrize("normalize", [True, False])
def test_initialize_puts_nearly_every_code_to_use(size: int, dim: int, normalize: bool):
    if normalize and dim == 1:
        pytest.skip("no sphere")
    torch.manual_seed(0)
    quantizer = make(size, dim, normalize)
    vectors = 50 + torch.randn(10_000, dim) @ torch.randn(dim, dim) * 10
    if normalize:
        vectors = vectors - 50
    assert quantizer.needs_init()
    quantizer.initialize(vectors)
    assert not quantizer.needs_init()
    with torch.no_grad():
        quantized = quantizer(as_grid(vectors))
    assert quantized.indices.unique().numel() > 0.9 * size
    target = F.normalize(vectors, dim=1) if normalize else vectors
    error = (quantized.vectors[0, :, 0].T - target).square().sum() / (
        target - target.mean(0)
    ).square().sum()
    # 9 bits say nearly nothing of a direction in 64 dimensions
    assert error < 0.9 or (normalize and dim == 64)


def test_moving_few_entries_moves_all():
    torch.manual_seed(0)
    quantizer = make(64, 4)
    grid = torch.arange(64).reshape(1, 1, 8, 8)
    before = quantizer.lookup(grid).detach()
    quantizer(before[:, :, :1, :4] + 0.1).loss.backward()  # four codes are chosen
    torch.optim.SGD(quantizer.parameters(), 0.5).step()
    assert quantizer.update_codebook() == 0
    moved = (quantizer.lookup(grid) - before).detach().abs().amax(1)
    assert (moved > 1e-4).all()


def test_what_is_released_in_float16_is_the_matrix_that_trained():
    quantizer = make(32, 8)
    assert torch.equal(quantizer.codebook.half().float(), quantizer.codebook)
