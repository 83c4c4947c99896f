"""The PixelRNN: its equations place by place, what it sees and what it is blind to, and the
commands that train and use it.
"""

import math
from pathlib import Path
from typing import cast

import pytest
import torch
import torch.nn.functional as F
from cli_helpers import ok, small
from torch import Tensor

from vqtok import codes, weights
from vqtok.config import PriorConfig
from vqtok.priors import PixelRNN
from vqtok.priors.pixelrnn import FIRST_REACH, RowLSTM, gather, scan, scatter
from vqtok.sampling.pixelrnn import PixelRNNSampler

K = 5


def made(
    levels: int = 1, labels: tuple[str, ...] = (), layers: int = 2, kernel: int = 3, width: int = 6
) -> PixelRNN:
    """Small, with noise on every parameter."""
    torch.manual_seed(1)
    prior = PixelRNN(
        PriorConfig(
            K,
            levels,
            width=width,
            layers=layers,
            kernel=kernel,
            dropout=0.3,
            labels=labels,
            architecture="pixelrnn",
        )
    )
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return prior.eval()


def at(features: dict[tuple[int, int], Tensor], i: int, j: int, size: int) -> Tensor:
    return features.get((i, j), torch.zeros(size))


def layers_of(prior: PixelRNN) -> list[RowLSTM]:
    return cast(list[RowLSTM], list(prior.layers))


def slow(prior: PixelRNN, grid: Tensor, constant: Tensor) -> Tensor:
    """Features (h, w, 2C) of one level's grid (h, w), one place at a time, as the paper has it;
    constant is (h, w, 2C).
    """
    (h, w), C, E = grid.shape, prior.config.width, prior.embedding.embedding_dim
    places = [(i, j) for i in range(h) for j in range(w)]
    embedded = {(i, j): prior.embedding.weight[grid[i, j]] for i, j in places}
    x = {}
    for i, j in places:
        x[i, j] = torch.as_tensor(prior.first.bias) + constant[i, j]
        for up in range(FIRST_REACH + 1):
            for right in range(-FIRST_REACH, FIRST_REACH + 1):
                if up or right < 0:
                    matrix = prior.first.weight[:, :, FIRST_REACH - up, FIRST_REACH + right]
                    x[i, j] = x[i, j] + matrix @ at(embedded, i - up, j + right, E)
    for layer in layers_of(prior):
        reach, hidden, cells, after = prior.config.kernel // 2, {}, {}, {}
        for i, j in places:
            gates = torch.as_tensor(layer.input.bias)
            for left in range(reach + 1):
                gates = gates + layer.input.weight[:, :, reach - left, 0] @ at(
                    x, i, j - left, 2 * C
                )
            for right in range(-reach, reach + 1):
                gates = gates + layer.state.weight[:, :, reach + right] @ at(
                    hidden, i - 1, j + right, C
                )
            enter, keep, leave, content = gates.split(C)
            cells[i, j] = keep.sigmoid() * at(cells, i - 1, j, C) + enter.sigmoid() * content.tanh()
            hidden[i, j] = leave.sigmoid() * cells[i, j].tanh()
            after[i, j] = x[i, j] + layer.out.weight @ hidden[i, j]
        x = after
    features = torch.stack([x[place] for place in places]).view(h, w, -1)
    return F.relu(F.linear(F.relu(features), prior.head.weight, prior.head.bias))


@torch.no_grad()
@pytest.mark.parametrize(("kernel", "layers"), [(3, 2), (5, 1)])
def test_hidden_is_what_the_equations_say(kernel: int, layers: int) -> None:
    prior = made(layers=layers, kernel=kernel)
    indices = torch.randint(K, (2, 1, 3, 4))
    hidden = prior.hidden(indices)
    assert hidden.shape == (2, 1, 3, 4, 12)
    for image in range(2):
        wanted = slow(prior, indices[image, 0], torch.zeros(3, 4, 12))
        torch.testing.assert_close(hidden[image, 0], wanted, atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_levels_below_and_labels_add_to_what_enters() -> None:
    prior = made(levels=2, labels=("cat", "dog"))
    assert prior.label is not None
    assert prior.from_context is not None
    indices = torch.randint(K, (1, 2, 3, 4))
    context = prior.context_of(indices)
    assert context is not None
    constant = prior.label.weight[2] + context[0, 1].permute(1, 2, 0) @ prior.from_context.weight.T
    wanted = slow(prior, indices[0, 1] + K, constant)
    torch.testing.assert_close(
        prior.hidden(indices, torch.tensor([1]))[0, 1], wanted, atol=2e-5, rtol=1e-4
    )


@torch.no_grad()
@pytest.mark.parametrize("layers", [1, 2])
def test_it_is_blind_outside_of_a_triangle(layers: int) -> None:
    """To the right it sees what the first layer shows the rows above, one column more with each
    row; to the left each layer adds one.
    """
    prior, (h, w), (i, j) = made(layers=layers), (5, 14), (4, 7)
    indices = torch.randint(K, (1, 1, h, w))
    before = prior(indices)[0, 0, i, j]
    for row in range(h):
        for column in range(w):
            changed = indices.clone()
            changed[0, 0, row, column] = (changed[0, 0, row, column] + 1) % K
            seen = not torch.equal(prior(changed)[0, 0, i, j], before)
            up = i - row
            left = j - layers - up - FIRST_REACH
            right = j + up - 1 + FIRST_REACH if up else j - 1
            assert seen == (left <= column <= right), (row, column)


def plain(gates: Tensor, weight: Tensor, w: int) -> Tensor:
    """The recurrence for autograd, through a convolution along the row."""
    h, size, C = gates.shape[0], gates.shape[1], gates.shape[2] // 4
    hidden, cells, rows = torch.zeros(size, C).to(gates), torch.zeros(size, C).to(gates), []
    kernel = weight.view(-1, C, 4 * C).permute(2, 1, 0)  # (4C, C, k)
    for i in range(h):
        # (N, 4C, w)
        above = F.conv1d(hidden.view(w, -1, C).permute(1, 2, 0), kernel, padding="same")
        enter, keep, leave, content = (gates[i] + above.permute(2, 0, 1).reshape(size, -1)).split(
            C, 1
        )
        cells = keep.sigmoid() * cells + enter.sigmoid() * content.tanh()
        hidden = leave.sigmoid() * cells.tanh()
        rows.append(hidden)
    return torch.stack(rows)


@pytest.mark.parametrize(("h", "w", "k"), [(4, 5, 3), (3, 2, 7), (1, 3, 3), (3, 1, 3)])
def test_the_gradient_of_the_recurrence(h: int, w: int, k: int) -> None:
    torch.manual_seed(0)
    # of 3 images, 2 units
    gates = torch.randn(h, w * 3, 4 * 2, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(k * 2, 4 * 2, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(h, w * 3, 2, dtype=torch.float64)
    ours, theirs = scan(gates.clone(), weight, w), plain(gates, weight, w)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(
        torch.autograd.grad(ours, (gates, weight), upstream),
        torch.autograd.grad(theirs, (gates, weight), upstream),
    )


def test_the_gradient_is_asked_for_once() -> None:
    """It takes the place of the gates: a second one would be wrong, and is refused."""
    gates = torch.randn(2, 3, 4, requires_grad=True)
    hidden = scan(gates.clone(), torch.randn(3, 4), 3).sum()
    hidden.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        hidden.backward()


def test_the_recurrence_in_bfloat16_is_close_to_float32() -> None:
    torch.manual_seed(0)
    gates, weight, upstream = (
        torch.randn(8, 6 * 4, 32),
        0.2 * torch.randn(24, 32),
        torch.randn(8, 6 * 4, 8),
    )
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        g, v = gates.to(dtype).requires_grad_(), weight.clone().requires_grad_()
        hidden = scan(g.clone(), v, 6)
        assert hidden.dtype == dtype
        for_gates, for_weight = torch.autograd.grad(hidden, (g, v), upstream.to(dtype))
        assert for_weight.dtype == torch.float32
        results.append((hidden.detach().float(), for_gates.float(), for_weight))
    for full, half in zip(*results, strict=True):
        assert float((full - half).norm() / full.norm()) < 0.02


def test_scatter_is_the_transpose_of_gather() -> None:
    torch.manual_seed(0)
    for w, k in ((4, 3), (1, 3), (2, 5)):
        states, copies = torch.randn(w * 3, 2), torch.randn(w * 3, k, 2)
        back = torch.zeros(w * 3, 2)
        scatter(copies, back, 3)
        forth = gather(states, torch.zeros(w * 3, k, 2), 3)
        torch.testing.assert_close((forth * copies).sum(), (back * states).sum())
        assert torch.equal(forth[:, k // 2], states)


def test_a_new_network_remembers() -> None:
    """The forget gates start open, at sigmoid(1)."""
    torch.manual_seed(0)
    prior = PixelRNN(PriorConfig(K, width=6, layers=2, architecture="pixelrnn"))
    for layer in layers_of(prior):
        assert layer.input.bias is not None
        assert layer.input.bias.tolist() == [0] * 6 + [1] * 6 + [0] * 12
    loss = prior.eval().loss(torch.randint(K, (4, 1, 8, 8)))
    assert loss.item() == pytest.approx(math.log(K), abs=0.1)


@pytest.mark.usefixtures("data")
@pytest.mark.slow
def test_train_sample_and_report() -> None:
    trained = small("-o", "run", "--prior", "pixelrnn", "--size", "16")
    assert trained.exit_code == 0, trained.output
    stored = weights.load_weights(Path("run/prior.safetensors"), "prior")
    assert stored.config["architecture"] == "pixelrnn"
    ok("sample", "-m", "run", "-n", "2", "--size", "16x12", "-o", "s.npz")
    assert codes.read_plain_codes(Path("s.npz")).indices.shape == (2, 1, 3, 4)
    ok("report", "run", "-o", "report.html")
    assert "pixelrnn" in Path("report.html").read_text()


@pytest.mark.parametrize(("n", "levels"), [(1, 1), (3, 2)])
def test_the_sampler_gives_the_logits_of_the_full_pass_also_of_rows_left_early(
    n: int, levels: int
) -> None:
    prior, level, (h, w) = made(levels, labels=("cat",)), levels - 1, (4, 5)
    # As training leaves it: some of its matrices are transposed views then.
    prior.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    indices = torch.randint(K, (n, levels, h, w))
    labels = torch.zeros(n, dtype=torch.int64)
    rows, full = (
        prior.label_rows(labels, n, indices.device),
        prior(indices, labels).detach()[:, level],
    )
    with torch.inference_mode():
        cursor = PixelRNNSampler(prior, n, h, w, rows).start_level(level, indices)
        for i in range(h):
            cursor.next_row(indices[:, level, i - 1] if i else None)
            for j in range(w if i != 1 else 2):  # the second row is left early
                cursor.next_column(indices[:, level, i, j - 1] if j else None)
                torch.testing.assert_close(cursor.logits(), full[:, i, j], atol=1e-5, rtol=1e-4)
