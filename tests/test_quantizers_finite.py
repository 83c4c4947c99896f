"""Quantizers without a codebook, `fsq` and `lfq`:
the numbers worked by hand, the start, gradients, entropies, sizes that fail.
"""

import math
from itertools import combinations_with_replacement, product

import pytest
import torch
from torch import Tensor, nn

from vqtok import quantizers
from vqtok.config import TokenizerConfig
from vqtok.errors import UsageError
from vqtok.quantizers import finite
from vqtok.quantizers.finite import (
    FSQuantizer,
    LFQuantizer,
    entropies,
    fsq_levels,
    lfq_bits,
    pack,
    unpack,
)

BOTH = pytest.mark.parametrize("kind", ["fsq", "lfq"])


def make(kind: str, size: int, dim: int, **settings: float) -> FSQuantizer | LFQuantizer:
    quantizer = quantizers.build_quantizer(
        TokenizerConfig(
            quantizer=kind,
            codebook_size=size,
            code_dim=dim,
            **settings,  # type: ignore[arg-type]
        )
    )
    assert isinstance(quantizer, FSQuantizer | LFQuantizer)
    return quantizer


@torch.no_grad()
def plain(quantizer: FSQuantizer | LFQuantizer) -> FSQuantizer | LFQuantizer:
    """Both layers pass their numbers on as they are."""
    for layer in (quantizer.inward, quantizer.outward):
        layer.weight.copy_(torch.eye(*layer.weight.shape))
        layer.bias.zero_()
    return quantizer


def as_grid(vectors: Tensor) -> Tensor:
    """(N, D) -> (1, D, 1, N)."""
    return vectors.T[None, :, None]


# Sizes


@pytest.mark.parametrize(
    ("size", "levels"),
    [
        # Table 1 of the paper, with the exact products of its rows.
        (240, (8, 6, 5)),
        (1000, (8, 5, 5, 5)),
        (4375, (7, 5, 5, 5, 5)),
        (15360, (8, 8, 8, 6, 5)),
        (64000, (8, 8, 8, 5, 5, 5)),
        # Powers of two, which it rounds.
        (16, (4, 4)),
        (64, (8, 8)),
        (256, (8, 8, 4)),
        (512, (8, 8, 8)),
        (1024, (8, 8, 4, 4)),
        (65536, (8, 8, 8, 8, 4, 4)),
        (3, (3,)),
        (11, (11,)),
        (143, (13, 11)),
    ],
)
def test_fsq_levels(size: int, levels: tuple[int, ...]):
    assert fsq_levels(size) == levels


def test_fsq_levels_are_the_fewest_and_most_even_factors_wherever_there_are_any():
    every: dict[int, list[tuple[int, ...]]] = {}
    for count in (1, 2, 3, 4):
        for factors in combinations_with_replacement(range(16, 2, -1), count):
            every.setdefault(math.prod(factors), []).append(factors)
    for size in range(2, 243):  # 3^5 would need five
        if size not in every:
            with pytest.raises(UsageError):
                fsq_levels(size)
            continue
        usual = [factors for factors in every[size] if factors[0] <= 8] or every[size]
        fewest = [factors for factors in usual if len(factors) == min(map(len, usual))]
        assert fsq_levels(size) == min(fewest, key=sum)


@pytest.mark.parametrize(
    ("kind", "size", "fix"),
    [
        ("fsq", 2, "--codebook-size 3,"),
        ("fsq", 17, "--codebook-size 16 or 18,"),
        ("fsq", 65521, "--codebook-size 65520 or 65536,"),
        ("lfq", 1000, "--codebook-size 512 or 1024,"),
        ("lfq", 3, "--codebook-size 2 or 4,"),
    ],
)
def test_sizes_that_cannot_be_name_the_nearest_that_can(kind: str, size: int, fix: str):
    config = TokenizerConfig(quantizer=kind, codebook_size=size, code_dim=16)
    for call in (quantizers.check_quantizer, quantizers.build_quantizer):
        with pytest.raises(UsageError, match=f"{kind} cannot make {size} codes") as caught:
            call(config)
        assert fix in caught.value.fix


@pytest.mark.parametrize(("kind", "size", "needed"), [("fsq", 1024, 4), ("lfq", 1024, 10)])
def test_a_code_dimension_below_the_numbers_is_told(kind: str, size: int, needed: int):
    with pytest.raises(
        UsageError, match=f"needs code dimension {needed} or more, not {needed - 1}"
    ) as caught:
        quantizers.check_quantizer(
            TokenizerConfig(quantizer=kind, codebook_size=size, code_dim=needed - 1)
        )
    assert f"--code-dim {needed}" in caught.value.fix
    quantizers.check_quantizer(
        TokenizerConfig(
            quantizer=kind, codebook_size=size, code_dim=needed, levels=3, normalize=False
        )
    )


def test_indices_are_a_mixed_radix_that_counts_from_the_first_digit():
    sizes = (4, 3, 5)
    digits = unpack(torch.arange(60), sizes)
    assert digits[:6].tolist() == [[0, 0, 0], [1, 0, 0], [2, 0, 0], [3, 0, 0], [0, 1, 0], [1, 1, 0]]
    assert digits[59].tolist() == [3, 2, 4]
    assert torch.equal(pack(digits, sizes), torch.arange(60))


# By hand


def test_fsq_by_hand():
    """K = 12 is (4, 3): -1, -1/2, 0, 1/2 and -1, 0, 1."""
    quantizer = plain(make("fsq", 12, 2))
    assert quantizer.sizes == (4, 3)
    # Of four values the borders lie at tanh(x + shift) = (b + 1/2) / 1.4985 for b in -1.5, -0.5,
    # 0.5, with tanh(shift) = 0.5 / 1.4985.
    shift = math.atanh(0.5 / 1.4985)
    borders = [math.atanh((b + 0.5) / 1.4985) - shift for b in (-1.5, -0.5, 0.5)]
    edge = math.atanh(0.5 / 0.999)
    xs = [
        (-50.0, 50.0),
        (borders[0] - 1e-3, edge + 1e-3),
        (borders[0] + 1e-3, edge - 1e-3),
        (0.0, 0.0),
        (borders[1] - 1e-3, -edge + 1e-3),
        (borders[1] + 1e-3, -edge - 1e-3),
        (borders[2] + 1e-3, 0.1),
        (50.0, -50.0),
    ]
    expected = [(-1, 1), (-1, 1), (-0.5, 0), (0, 0), (-0.5, 0), (0, -1), (0.5, 0), (0.5, -1)]
    quantized = quantizer(as_grid(torch.tensor(xs)))
    torch.testing.assert_close(
        quantized.vectors, as_grid(torch.tensor(expected, dtype=torch.float32))
    )
    # Digits count from 0 at the lowest value; the second is worth 4.
    assert quantized.indices.flatten().tolist() == [8, 8, 5, 6, 5, 2, 7, 3]
    assert quantized.loss == 0


def test_lfq_by_hand():
    quantizer = plain(make("lfq", 8, 3, beta=0.5)).eval()
    vectors = torch.tensor(
        [[0.3, -2.0, 0.1], [-0.3, 0.2, -9.0], [-1.0, -1.0, -1e-3], [4.0, 5.0, 6.0]]
    )
    quantized = quantizer(as_grid(vectors))
    assert torch.equal(quantized.vectors, as_grid(vectors.sign()))
    assert quantized.indices.flatten().tolist() == [1 + 4, 2, 0, 7]
    assert quantized.loss == 0
    loss = quantizer.train()(as_grid(vectors)).loss
    single, overall = entropies(4 * vectors)
    commitment = 0.5 * (vectors - vectors.sign()).square().mean()
    torch.testing.assert_close(loss, commitment + 0.1 * (single - overall))


# Entropies


@pytest.mark.parametrize("bits", [1, 2, 5])
def test_entropies_are_those_of_all_codes(bits: int):
    inner = torch.randn(
        40, bits, dtype=torch.float64, generator=torch.Generator().manual_seed(bits)
    )
    signs = torch.tensor(list(product((-1.0, 1.0), repeat=bits)), dtype=torch.float64)  # (K, bits)
    chances = (-(inner[:, None] - signs).square().sum(-1)).softmax(1)  # (N, K), temperature 1
    single, overall = entropies(4 * inner)
    torch.testing.assert_close(single, -(chances * chances.log()).sum(1).mean())
    mean = chances.mean(0)
    torch.testing.assert_close(overall, -(mean * mean.log()).sum())


def test_entropies_of_65536_codes_are_finite_cheap_and_have_gradients():
    # all sure of one code: the others have probability 0
    logits = torch.full((64, 16), 200.0, requires_grad=True)
    single, overall = entropies(logits)
    (single - overall).backward()
    assert abs(float(single.detach())) < 1e-6
    assert abs(float(overall.detach())) < 1e-6
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    spread = 50 * torch.randn(4096, 16, generator=torch.Generator().manual_seed(0)).sign()
    assert entropies(spread)[1] == pytest.approx(math.log(4096), abs=0.05)


def test_the_entropy_term_spreads_vectors_over_the_codes():
    torch.manual_seed(0)
    quantizer = plain(make("lfq", 16, 4, beta=0.1))
    with torch.no_grad():
        quantizer.inward.bias.fill_(0.4)  # most vectors get the same code
    z = as_grid(0.5 * torch.randn(300, 4))
    optimizer = torch.optim.SGD(quantizer.inward.parameters(), 1.0)
    largest = []
    for _ in range(25):
        optimizer.zero_grad()
        quantized = quantizer(z)
        largest.append(int(quantized.indices.unique(return_counts=True)[1].max()))
        quantized.loss.backward()
        optimizer.step()
    assert largest[0] > 100
    assert largest[-1] < 70  # 300 on 16 codes: 19 each


# Round trips and gradients


@pytest.mark.parametrize(
    ("kind", "size"), [("fsq", 240), ("fsq", 1024), ("fsq", 13), ("lfq", 2), ("lfq", 1024)]
)
def test_every_code_comes_back(kind: str, size: int):
    quantizer = make(kind, size, 10)
    grid = torch.arange(size).reshape(1, 1, 1, size)
    values = quantizer._values(unpack(grid[:, 0], quantizer.sizes))  # (1, 1, K, d)
    assert values.abs().max() == 1
    assert values.reshape(size, -1).unique(dim=0).shape[0] == size
    plain(quantizer)
    vectors = quantizer.lookup(grid).detach()  # (1, 10, 1, K)
    assert vectors.flatten(2)[0].T.unique(dim=0).shape[0] == size
    if kind == "fsq":  # `tanh` would pull some to their neighbors: its inverse first
        reach, half, offset = (
            torch.tensor(row)
            for row in zip(
                *[((n - 1) / 2 * 0.999, n // 2, 0.5 - n % 2 / 2) for n in quantizer.sizes],
                strict=True,
            )
        )
        inner = torch.atanh(
            ((values * half + offset) / reach).clamp(-0.99999, 0.99999)
        ) - torch.atanh(offset / reach)
        vectors[:, : len(half)] = inner.permute(0, 3, 1, 2)
    assert torch.equal(quantizer(vectors).indices, grid)


@BOTH
def test_lookup_gives_what_forward_gave(kind: str):
    torch.manual_seed(0)
    quantizer = make(kind, 64, 8)
    quantized = quantizer(torch.randn(3, 8, 4, 5))
    assert quantized.indices.shape == (3, 1, 4, 5)
    assert quantized.indices.dtype == torch.int64
    torch.testing.assert_close(quantizer.lookup(quantized.indices), quantized.vectors)


def test_the_gradient_of_lfq_is_that_of_tanh_between_the_layers():
    torch.manual_seed(0)
    quantizer = make("lfq", 16, 6).eval()
    z, weights = torch.randn(2, 6, 3, 5, requires_grad=True), torch.randn(2, 6, 3, 5)
    (quantizer(z).vectors * weights).sum().backward()
    smooth = quantizer.outward(torch.tanh(quantizer.inward(z.permute(0, 2, 3, 1)))).permute(
        0, 3, 1, 2
    )
    (expected,) = torch.autograd.grad((smooth * weights).sum(), z)
    torch.testing.assert_close(z.grad, expected)
    signs = quantizer._values(unpack(quantizer(z).indices[:, 0], quantizer.sizes))  # (2, 3, 5, 4)
    torch.testing.assert_close(
        quantizer.outward.weight.grad, torch.einsum("bdhw,bhwk->dk", weights, signs)
    )


@BOTH
@pytest.mark.parametrize("scale", [0.1, 1.0, 100.0])
def test_the_gradient_never_claims_more_than_the_values_can_follow(kind: str, scale: float):
    """Levels after this one learn from 1 minus this share:
    above 2 they would push the wrong way, and training diverges.
    """
    torch.manual_seed(0)
    quantizer, vectors = make(kind, 64, 6).eval(), torch.randn(4000, 6)
    quantizer.initialize(vectors)
    with torch.no_grad():
        quantizer.inward.weight.mul_(scale)
        quantizer.inward.bias.mul_(scale)
    z = as_grid(vectors).requires_grad_()
    share = 0.0
    for i in range(6):
        (gradient,) = torch.autograd.grad(quantizer(z).vectors[:, i].sum(), z)
        share += float(gradient[:, i].mean()) / 6
    assert 0 < share < 1


def test_the_gradient_of_fsq_is_that_of_the_bounded_numbers():
    torch.manual_seed(0)
    quantizer = plain(make("fsq", 24, 2))  # (6, 4)
    z, weights = torch.randn(2, 2, 3, 5, requires_grad=True), torch.randn(2, 2, 3, 5)
    (quantizer(z).vectors * weights).sum().backward()
    expected = torch.empty_like(z)
    for i, n in enumerate(quantizer.sizes):
        reach = (n - 1) / 2 * 0.999
        expected[:, i] = (
            weights[:, i]
            * (1 - torch.tanh(z[:, i] + math.atanh(0.5 / reach)) ** 2)
            * reach
            / (n // 2)
        )
    torch.testing.assert_close(z.grad, expected.detach())


# Start


@pytest.mark.parametrize(
    ("kind", "size", "dim"),
    [
        ("fsq", 16, 4),
        ("fsq", 1000, 8),
        ("fsq", 1024, 4),
        ("lfq", 2, 1),
        ("lfq", 256, 8),
        ("lfq", 1024, 12),
    ],
)
@pytest.mark.parametrize("scale", [1e-2, 1.0, 100.0])
def test_initialize_puts_nearly_every_code_to_use_at_any_scale(
    kind: str, size: int, dim: int, scale: float
):
    torch.manual_seed(0)
    quantizer = make(kind, size, dim, normalize=False).eval()
    vectors = scale * (5 + torch.randn(20_000, dim) @ torch.randn(dim, dim))
    assert quantizer.needs_init()
    quantizer.initialize(vectors)
    assert not quantizer.needs_init()
    indices = quantizer(as_grid(vectors)).indices
    assert indices.unique().numel() > 0.9 * size
    counts = torch.bincount(indices.flatten(), minlength=size) / indices.numel()
    assert torch.special.entr(counts).sum().exp() > 0.75 * size


@BOTH
def test_initialize_comes_as_near_to_the_vectors_as_the_values_allow(kind: str):
    torch.manual_seed(0)
    quantizer = make(kind, 64, 6).eval()
    vectors = 3 + torch.randn(5000, 6) * torch.tensor([5.0, 4.0, 3.0, 0.1, 0.1, 0.1])
    quantizer.initialize(vectors)
    made = quantizer(as_grid(vectors)).vectors[0, :, 0].T.detach()
    error = (made - vectors).square().sum() / (vectors - vectors.mean(0)).square().sum()
    assert error < 0.4  # one bit a number leaves 1 - 2/pi = 0.363 of a Gaussian
    # Least squares: no other outward layer does better on these values.
    values = quantizer._values(
        unpack(quantizer(as_grid(vectors)).indices.flatten(), quantizer.sizes)
    )
    ones = torch.cat([values, torch.ones(len(values), 1)], 1)
    best = ones @ torch.linalg.lstsq(ones, vectors).solution
    torch.testing.assert_close(made, best, atol=2e-3, rtol=1e-3)


@BOTH
@pytest.mark.parametrize(
    "vectors",
    [
        torch.ones(100, 8),
        torch.randn(100, 1) * torch.ones(8),
        torch.zeros(100, 8),
        torch.randn(3, 8),
    ],
)
def test_initialize_from_poor_vectors_stays_finite_in_float16(kind: str, vectors: Tensor):
    quantizer = make(kind, 64, 8).eval()
    quantizer.initialize(vectors)
    assert all(value.half().isfinite().all() for value in quantizer.state_dict().values())
    made = quantizer(as_grid(vectors)).vectors[0, :, 0].T
    assert (made - vectors).square().mean() <= vectors.var(0).mean() + 1e-6


# Precision and training


@BOTH
def test_inside_bf16_autocast_the_quantizer_computes_in_fp32(kind: str):
    torch.manual_seed(0)
    quantizer, z = make(kind, 256, 8), torch.randn(4, 8, 16, 16)
    quantizer.initialize(torch.randn(1000, 8))
    plain_ = quantizer(z)
    with torch.autocast("cpu", torch.bfloat16):
        inside, of_bf16 = quantizer(z), quantizer(z.bfloat16())
    assert torch.equal(inside.indices, plain_.indices)
    assert torch.equal(inside.vectors, plain_.vectors)
    assert torch.equal(inside.loss, plain_.loss)
    assert of_bf16.vectors.dtype == torch.float32


@BOTH
def test_there_is_nothing_to_revive(kind: str):
    quantizer = make(kind, 64, 8)
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    quantizer(torch.randn(1, 8, 3, 4))
    assert quantizer.update_codebook() == 0
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())


def test_lfq_bits():
    assert [lfq_bits(2**d) for d in range(1, 17)] == list(range(1, 17))


@pytest.mark.parametrize(("inputs", "outputs"), [(24, 4), (4, 24), (5, 5), (1, 3)])
def test_a_layer_in_chunks_equals_the_layer(
    monkeypatch: pytest.MonkeyPatch, inputs: int, outputs: int
):
    monkeypatch.setattr(finite, "VECTORS", 240)  # ten rows of 24 numbers
    draws = torch.Generator().manual_seed(0)
    for N in (0, 1, 10, 37):
        layer = nn.Linear(inputs, outputs)
        x, given = (torch.randn(N, size, generator=draws) for size in (inputs, outputs))
        results = []
        for apply in (finite._linear, lambda layer, x: layer(x)):
            leaf = x.clone().requires_grad_()
            layer.zero_grad()
            out = apply(layer, leaf)
            out.backward(given)
            results.append([out.detach(), leaf.grad, layer.weight.grad, layer.bias.grad])
        for found, expected in zip(*results, strict=True):
            torch.testing.assert_close(found, expected)
