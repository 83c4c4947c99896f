"""The prior: causal, without blind spot, honest sampling options."""

import math

import pytest
import torch
from torch import Tensor

from vqtok.config import PriorConfig
from vqtok.errors import UsageError
from vqtok.priors import PixelCNN, base, cross_entropy, receptive_field
from vqtok.sampling import sample_grids
from vqtok.sampling.categorical import sample_categorical

GRIDS = [(5, 9), (9, 5), (1, 7), (7, 1), (1, 1), (4, 4)]
NAMES = ("cat", "dog", "car")


def tiny(
    levels: int = 1, K: int = 11, labels: tuple[str, ...] = NAMES, kernel: int = 3, layers: int = 3
) -> PixelCNN:
    """A small prior whose every parameter matters: an untrained readout is close to zero."""
    torch.manual_seed(0)
    prior = PixelCNN(
        PriorConfig(K, levels, width=8, layers=layers, kernel=kernel, dropout=0.2, labels=labels)
    ).eval()
    with torch.no_grad():
        for linear in prior.readout:
            assert isinstance(linear, torch.nn.Linear)
            linear.weight.normal_(std=0.5)
            linear.bias.normal_(std=0.5)
    return prior


def frequencies(logits: Tensor, **options: float | int | None) -> Tensor:
    """How often each index is drawn, over 100,000 evenly spaced uniform numbers."""
    count = 100_000
    uniform = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    drawn = sample_categorical(
        logits.expand(count, -1),
        uniform,
        **options,  # type: ignore[arg-type]
    )
    return torch.bincount(drawn, minlength=logits.shape[-1]) / count


def test_labels_and_levels_change_logits() -> None:
    prior = tiny(2)
    indices = torch.randint(11, (1, 2, 3, 4))
    with torch.no_grad():
        by_label = [prior(indices, torch.tensor([label])) for label in (-1, 0, 1, 2)]
        assert torch.equal(by_label[0], prior(indices))
        for other in by_label[1:]:
            assert (other - by_label[0]).abs().amax(dim=(0, 2, 3, 4)).gt(1e-3).all()
        assert not torch.allclose(by_label[0][:, 0], by_label[0][:, 1], atol=1e-3)


def gradients(
    prior: PixelCNN, h: int, w: int, level: int, at: tuple[int, int]
) -> tuple[Tensor, Tensor | None]:
    """|d logits[at] / d embedding| summed over channels:
    (L, h, w), and for the context's embedding (L-1, h, w).
    """
    caught: list[Tensor] = []

    def catch(module: torch.nn.Module, inputs: object, output: Tensor) -> None:
        output.retain_grad()
        caught.append(output)

    modules = (
        [prior.embedding] if prior.context is None else [prior.embedding, prior.context.embedding]
    )
    handles = [module.register_forward_hook(catch) for module in modules]
    logits = prior(torch.randint(11, (1, prior.config.levels, h, w)), torch.tensor([1]))
    for handle in handles:
        handle.remove()
    # Random weights: a plain sum could cancel.
    (logits[0, level, at[0], at[1]] * torch.randn(11)).sum().backward()
    grads = []
    for output in caught:
        assert output.grad is not None
        grads.append(output.grad[0].abs().sum(-1))
    return grads[0], grads[1] if len(grads) > 1 else None


@pytest.mark.parametrize("levels", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5])
def test_causal_exactly_and_without_blind_spot(kernel: int, levels: int) -> None:
    prior = tiny(levels, kernel=kernel, layers=2)
    h, w = 6, 9
    rows, columns = receptive_field(prior.config)
    for level in range(levels):
        for i, j in [(0, 0), (0, 8), (3, 0), (3, 4), (5, 8), (5, 2)]:
            own, below = gradients(prior, h, w, level, (i, j))
            for y in range(h):
                for x in range(w):
                    before = (y, x) < (i, j)
                    in_row = y == i and j - x <= columns
                    above = 0 < i - y <= rows and abs(j - x) <= columns - 1
                    seen = own[level, y, x] > 0
                    assert seen == (before and (in_row or above)), f"({i}, {j}) and ({y}, {x})"
            others = [m for m in range(levels) if m != level]
            assert own[others].eq(0).all()
            if below is not None:
                assert below[level:].eq(0).all()
                # a lower level is seen at the position itself
                assert below[:level, i, j].gt(0).all()
                if level and (i, j) == (3, 4):
                    assert below[:level, i + 1, j + 1].gt(0).all()  # and after it


def test_a_level_does_not_see_itself_ahead_nor_levels_above() -> None:
    prior = tiny(3)
    indices = torch.randint(11, (1, 3, 4, 5))
    changed = indices.clone()
    changed[:, 1, 2, 3] = (changed[:, 1, 2, 3] + 1) % 11
    with torch.no_grad():
        moved = (prior(changed) - prior(indices)).abs().amax(-1)[0]  # (L, h, w)
    assert moved[0].eq(0).all()
    assert moved[1].flatten()[: 2 * 5 + 4].eq(0).all()
    assert moved[1, 2, 4] > 0
    assert moved[2, 1:3, 2:4].gt(0).all()


def test_receptive_field_of_the_default_prior() -> None:
    assert receptive_field(PriorConfig(layers=10, kernel=5)) == (21, 21)


def test_rows_below_do_not_matter() -> None:
    prior = tiny()
    indices = torch.randint(11, (2, 1, 5, 8))
    with torch.no_grad():
        whole = prior(indices)
        torch.testing.assert_close(prior(indices[:, :, :3]), whole[:, :, :3])
        left = prior(indices[..., :3])
    assert (left - whole[..., :3, :]).abs()[..., 2, :].max() > 1e-3  # columns to the right do


@pytest.mark.parametrize("levels", [1, 2])
def test_loss_is_mean_nats_in_pieces_and_whole(
    monkeypatch: pytest.MonkeyPatch, levels: int
) -> None:
    prior = tiny(levels)
    indices, labels = torch.randint(11, (3, levels, 3, 5)), torch.tensor([0, -1, 2])
    expected = -prior(indices, labels).log_softmax(-1).gather(-1, indices[..., None])[..., 0]
    whole = prior.loss(indices, labels)
    torch.testing.assert_close(whole, expected.mean())
    grads = torch.autograd.grad(whole, [p for p in prior.parameters() if p.requires_grad])
    monkeypatch.setattr(base, "LOGITS_AT_ONCE", 77)
    pieces = prior.loss(indices, labels)
    torch.testing.assert_close(pieces, whole)
    torch.testing.assert_close(torch.autograd.grad(pieces, list(prior.parameters())), grads)
    prior.train()
    bits = cross_entropy(prior, indices, labels, batch=2)
    assert prior.training
    torch.testing.assert_close(
        bits, expected.detach().flatten(1).double().sum(1) / math.log(2), rtol=1e-5, atol=1e-5
    )


def test_untrained_prior_knows_nothing_yet() -> None:
    torch.manual_seed(0)
    prior = PixelCNN(PriorConfig(512, width=32, layers=4))
    assert abs(prior.loss(torch.randint(512, (4, 1, 8, 8))).item() - math.log(512)) < 0.05


def test_dropout_in_training_only() -> None:
    prior, indices = tiny(), torch.randint(11, (1, 1, 4, 4))
    assert torch.equal(prior(indices), prior(indices))
    prior.train()
    assert not torch.equal(prior(indices), prior(indices))


def test_bf16_autocast() -> None:
    prior = tiny(2)
    indices = torch.randint(11, (2, 2, 4, 6))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = prior.loss(indices)
        inside = sample_grids(prior, 128, (5, 6), seed=1)
    loss.backward()
    assert loss.dtype == torch.float32
    assert abs(loss.item() - prior.loss(indices).item()) < 0.05
    # sampling is in float32 all the same
    assert torch.equal(inside, sample_grids(prior, 128, (5, 6), seed=1))


def test_one_level_has_no_level_parameters() -> None:
    prior = tiny(1, labels=())
    assert not [
        name for name, _ in prior.named_parameters() if "context" in name or "label" in name
    ]


@pytest.mark.parametrize("levels", [1, 2])
@pytest.mark.parametrize(("h", "w"), [(5, 9), (7, 1)])
def test_temperature_zero_is_argmax_of_the_full_pass(h: int, w: int, levels: int) -> None:
    prior = tiny(levels)
    labels = torch.tensor([2, -1])
    grid = sample_grids(prior, 2, (h, w), labels=labels, temperature=0)
    assert grid.shape == (2, levels, h, w)
    assert torch.equal(prior(grid, labels).argmax(-1), grid)
    assert (h, w) == (7, 1) or not torch.equal(grid[0], grid[1])  # by their labels


def test_samples_follow_the_prior() -> None:
    prior = tiny(K=3, labels=())
    with torch.no_grad():
        grids = sample_grids(prior, 4000, (1, 2), seed=3)[:, 0, 0]  # (n, 2)
        cells = torch.cartesian_prod(torch.arange(3), torch.arange(3))  # all nine grids
        odds = (-prior.nats(cells[:, None, None]).sum((1, 2, 3))).exp()  # (9,)
    found = torch.bincount(grids[:, 0] * 3 + grids[:, 1], minlength=9) / 4000
    assert odds.sum().item() == pytest.approx(1, abs=1e-5)
    assert (found - odds).abs().max() < 4 * math.sqrt(0.25 / 4000)


def test_a_image_depends_on_its_seed_and_number_alone() -> None:
    prior = tiny(2)
    three = sample_grids(prior, 3, (4, 5), labels=1, seed=7)
    assert torch.equal(sample_grids(prior, 3, (4, 5), labels=1, seed=7), three)
    assert torch.equal(sample_grids(prior, 1, (4, 5), labels=[1], seed=7), three[:1])
    assert not torch.equal(three[0], three[1])
    other = sample_grids(prior, 3, (4, 5), labels=1, seed=8)
    assert not torch.equal(other, three)
    assert not torch.equal(other[:2], three[1:])
    assert not torch.equal(sample_grids(prior, 3, (4, 5), labels=2, seed=7), three)
    one, two = (
        sample_grids(prior, 1, (4, 5), seed=torch.Generator().manual_seed(5)) for _ in range(2)
    )
    assert torch.equal(one, two)


@pytest.mark.parametrize("levels", [1, 2])
def test_known_indices_stay_and_condition_the_rest(levels: int) -> None:
    prior = tiny(levels)
    known = torch.full((2, levels, 5, 4), -1)
    known[:, :, :2] = torch.randint(11, (2, levels, 2, 4))  # the top rows
    known[:, :, 2, 0] = 5  # a row's first
    known[0, :, 3, 1] = 10  # one in the middle, in one grid only
    known[1, :, 4, 3] = 3  # and the last
    grid = sample_grids(prior, 2, (5, 4), temperature=0, known=known)
    given = known >= 0
    assert torch.equal(grid[given], known[given])
    assert torch.equal(prior(grid).argmax(-1)[~given], grid[~given])
    assert torch.equal(sample_grids(prior, 2, (5, 4), known=grid, seed=9), grid)
    assert sample_grids(prior, 2, (5, 4), seed=9, known=known).max() <= 10


def test_threads_are_given_back() -> None:
    before, during = torch.get_num_threads(), []

    def interrupt(done: int, total: int) -> None:
        during.append(torch.get_num_threads())
        raise KeyboardInterrupt

    try:
        torch.set_num_threads(2)
        with pytest.raises(KeyboardInterrupt):
            sample_grids(tiny(), 1, (2, 2), progress=interrupt)
        assert (torch.get_num_threads(), during) == (2, [1])
    finally:
        torch.set_num_threads(before)


def test_progress_counts_rows() -> None:
    seen: list[tuple[int, int]] = []
    sample_grids(tiny(2), 1, (3, 2), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 6) for i in range(1, 7)]


ODDS = torch.tensor([0.1, 0.4, 0.05, 0.3, 0.15])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ODDS),
        ({"temperature": 0.5}, ODDS**2),
        ({"temperature": 1e-320}, [0, 1, 0, 0, 0]),
        ({"temperature": 0}, [0, 1, 0, 0, 0]),
        ({"top_k": 1}, [0, 1, 0, 0, 0]),
        ({"top_k": 2}, [0, 4, 0, 3, 0]),
        ({"top_k": 99}, ODDS),
        ({"top_p": 0.01}, [0, 1, 0, 0, 0]),
        ({"top_p": 0.65}, [0, 4, 0, 3, 0]),
        ({"top_p": 0.75}, [0, 40, 0, 30, 15]),
        ({"top_p": 1.0}, ODDS),
        ({"top_k": 3, "top_p": 0.8}, [0, 4, 0, 3, 0]),  # 0.7 of 0.85 left is 0.82 already
        ({"top_k": 3, "top_p": 0.85}, [0, 40, 0, 30, 15]),
        ({"top_k": 3, "top_p": 0.8, "temperature": 0.5}, [0, 16, 0, 9, 0]),
    ],
)
def test_options_shape_the_distribution(
    options: dict[str, float], expected: list[float] | Tensor
) -> None:
    wanted = torch.as_tensor(expected, dtype=torch.float32)
    torch.testing.assert_close(
        frequencies(ODDS.log()[None], **options), wanted / wanted.sum(), atol=2e-5, rtol=0
    )


def test_top_k_keeps_k_among_equals_and_never_draws_the_impossible() -> None:
    assert frequencies(torch.zeros(1, 6), top_k=2).gt(0).sum() == 2
    logits = torch.tensor([[-1e9, 0.0, -1e9]])
    for uniform in (0.0, 1 - 2**-53, 1.0):  # float32, on MPS, can round to 1
        assert sample_categorical(logits, torch.tensor([uniform], dtype=torch.float64)) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1.0},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"top_k": 0},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"labels": 3},
        {"labels": [-2, 0]},
        {"labels": [0]},
        {"known": torch.full((2, 1, 4, 3), -1)},
        {"known": torch.full((2, 1, 3, 4), 11)},
        {"known": torch.full((2, 1, 3, 4), -2)},
    ],
)
def test_bad_options_are_usage_errors(options: dict) -> None:
    with pytest.raises(UsageError):
        sample_grids(tiny(), 2, (3, 4), **options)


def test_label_for_a_prior_without_labels_is_a_usage_error() -> None:
    prior = tiny(labels=())
    with pytest.raises(UsageError, match="without labels"):
        sample_grids(prior, 1, (2, 2), labels=0)
    assert torch.equal(sample_grids(prior, 1, (2, 2), labels=-1), sample_grids(prior, 1, (2, 2)))


@pytest.mark.slow
def test_learns_a_pattern_and_samples_it() -> None:
    torch.manual_seed(0)
    i, j = torch.meshgrid(torch.arange(4), torch.arange(6), indexing="ij")
    # (2, 1, 4, 6): non-square, one for each class
    stripes = torch.stack([(i + 2 * j) % 5, (2 * i + j) % 5])[:, None]
    prior = PixelCNN(
        PriorConfig(5, width=16, layers=3, kernel=3, dropout=0.0, labels=("one", "two"))
    )
    optimizer = torch.optim.Adam(prior.parameters(), lr=1e-2)
    labels = torch.tensor([0, 1])
    for _ in range(120):
        optimizer.zero_grad()
        prior.loss(stripes, labels).backward()
        optimizer.step()
    assert cross_entropy(prior, stripes, labels).max() < 1
    assert torch.equal(
        sample_grids(prior, 4, (4, 6), labels=[0, 1, 1, 0], seed=1), stripes[[0, 1, 1, 0]]
    )
