"""The masked prior: what it sees, how it learns, the schedule and the choice of its sampler."""

import math

import pytest
import torch
from torch import Tensor

from vqtok.codec.drawing import complete_grids
from vqtok.config import PriorConfig
from vqtok.priors import MaskedTransformer
from vqtok.priors.masked import draw_masks
from vqtok.sampling import masked, sample_grids

K, H, W = 7, 4, 6


def made(levels: int = 1) -> MaskedTransformer:
    """A small prior whose every parameter matters: noise on all of them."""
    torch.manual_seed(0)
    prior = MaskedTransformer(
        PriorConfig(
            K,
            levels,
            width=16,
            layers=2,
            dropout=0.2,
            labels=("cat", "dog"),
            heads=2,
            architecture="masked",
        )
    ).eval()
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return prior


def hide(levels: int, *hidden: tuple[int, int, int]) -> Tensor:
    mask = torch.zeros(1, levels, H, W, dtype=torch.bool)
    for place in hidden:
        mask[0, place[0], place[1], place[2]] = True
    return mask


@torch.no_grad()
def test_a_hidden_index_is_not_seen_and_all_others_are():
    prior, mask = made(2), hide(2, (1, 2, 3), (1, 0, 0))
    grid = torch.randint(K, (1, 2, H, W))
    before = prior.nats(grid, None, mask)
    features = prior.hidden(grid, None, mask)[0, 1, 2, 3]
    for level in range(2):
        for i in range(H):
            for j in range(W):
                changed = grid.clone()
                changed[0, level, i, j] = (changed[0, level, i, j] + 1) % K
                moved = (prior.hidden(changed, None, mask)[0, 1, 2, 3] - features).abs().max()
                seen = level == 0 or not bool(mask[0, level, i, j])
                assert (float(moved) > 1e-6) == seen, (level, i, j)
    changed = grid.clone()
    changed[0, 1] = (changed[0, 1] + 1) % K  # a level does not see those above it
    torch.testing.assert_close(prior.nats(changed, None, mask)[0, 0], before[0, 0])


@torch.no_grad()
def test_where_all_is_hidden_places_still_differ():
    features = made().hidden(torch.zeros(1, 1, H, W, dtype=torch.int64))[0, 0].flatten(0, 1)
    distance = torch.cdist(features, features) + torch.eye(H * W)
    assert float(distance.min()) > 1e-3


def test_masks_hide_a_cosine_part_and_one_place_at_least():
    masks = draw_masks(torch.zeros(4000, 1, 4, 4), 1).flatten(1).sum(1)
    assert int(masks.min()) == 1
    assert int(masks.max()) == 16
    # the mean of cos(pi/2 u) is 2/pi; rounding up adds half a place of 16
    assert float(masks.float().mean()) / 16 == pytest.approx(2 / math.pi + 1 / 32, abs=0.02)
    again = draw_masks(torch.zeros(4000, 1, 4, 4), 1).flatten(1).sum(1)
    assert torch.equal(masks, again)


def test_the_loss_counts_hidden_places_alone_and_validates_alike():
    prior, grid = made(2), torch.randint(K, (3, 2, H, W))
    with torch.no_grad():
        mask = draw_masks(grid, 0)
        wanted = prior.nats(grid, None, mask)[mask].mean()
        assert float(prior.loss(grid)) == pytest.approx(float(wanted), rel=1e-5)
        assert float(prior.loss(grid)) == float(prior.loss(grid))
        prior.train()
        assert float(prior.loss(grid)) != float(prior.loss(grid))


def test_the_surest_places_become_known():
    odds = torch.tensor([[-5.0, -1.0, -3.0, -2.0], [-1.0, -2.0, -3.0, -4.0]])
    hidden = torch.tensor([[True, True, True, False], [True, False, True, True]])
    chosen = masked.surest(odds, hidden, torch.tensor([1, 2]))
    assert chosen.tolist() == [[False, True, True, False], [True, False, False, False]]
    # a schedule that would leave all of them hidden still moves on by one
    assert masked.surest(odds, hidden, torch.tensor([3, 3])).sum(1).tolist() == [1, 1]
    assert masked.surest(odds, hidden, torch.tensor([0, 0])).tolist() == hidden.tolist()
    assert masked.surest(odds, ~hidden & hidden, torch.tensor([0, 0])).sum() == 0


def test_few_places_at_first_and_all_in_ten_steps(monkeypatch: pytest.MonkeyPatch):
    left, prior = [], made()
    forward = prior.hidden

    def watched(indices: Tensor, labels: Tensor | None, mask: Tensor) -> Tensor:
        left.append(int(mask.sum()))
        return forward(indices, labels, mask)

    monkeypatch.setattr(prior, "hidden", watched)
    ticks = []
    sample_grids(prior, 1, (8, 8), progress=lambda done, total: ticks.append((done, total)))
    assert left == [64, *(math.floor(64 * math.cos(math.pi / 2 * t / 10)) for t in range(1, 10))]
    assert ticks == [(i + 1, 8) for i in range(8)]
    left.clear()
    known = torch.randint(K, (1, 1, 8, 8))
    known[0, 0, 3, 3] = -1
    sample_grids(prior, 1, (8, 8), known=known)
    assert left == [1]  # and no step more than there are places


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("levels", [1, 2])
def test_what_is_known_stays_and_each_image_is_its_own(levels: int, guidance: float):
    prior, known = made(levels), torch.full((3, levels, H, W), -1)
    known[:, :, :2] = torch.randint(K, (3, levels, 2, W))
    options = {"labels": 1, "seed": 4, "guidance": guidance}
    drawn = sample_grids(prior, 3, (H, W), known=known, **options)
    assert torch.equal(drawn[known >= 0], known[known >= 0])
    assert int(drawn.min()) >= 0
    assert int(drawn.max()) < K
    assert torch.equal(drawn, sample_grids(prior, 3, (H, W), known=known, **options))
    first = sample_grids(prior, 1, (H, W), known=known[:1], **options)
    assert torch.equal(first[0], drawn[0])
    other = sample_grids(prior, 3, (H, W), known=known, **{**options, "seed": 5})
    assert not torch.equal(other, drawn)
    plain = sample_grids(prior, 3, (H, W), known=known, **{**options, "guidance": 1.0})
    assert torch.equal(drawn, plain) == (guidance == 1)


def test_greedy_draws_know_no_chance():
    prior = made()
    grids = [sample_grids(prior, 2, (H, W), seed=s, temperature=0.0) for s in (0, 1)]
    assert torch.equal(*grids)
    assert torch.equal(grids[0][0], grids[0][1])


def test_a_trained_one_draws_what_it_learned_and_completes_from_the_far_side():
    """Each grid is one code all over: what is known at the bottom decides the top."""
    torch.manual_seed(0)
    prior = MaskedTransformer(
        PriorConfig(4, 1, width=16, layers=2, dropout=0.0, heads=2, architecture="masked")
    )
    optimizer = torch.optim.AdamW(prior.parameters(), 1e-2)
    prior.train()
    for _ in range(60):
        grids = torch.randint(4, (16, 1, 1, 1)).expand(-1, 1, 3, 3)
        optimizer.zero_grad()
        prior.loss(grids).backward()
        optimizer.step()
    prior.eval()
    drawn = sample_grids(prior, 12, (3, 3)).flatten(1)
    assert float((drawn == drawn.mode(1, keepdim=True).values).float().mean()) > 0.9
    assert len(drawn.unique()) > 1
    known = torch.full((1, 3, 3), -1)
    known[0, 2, 2] = 3
    completed = complete_grids(prior, known, 4, candidates=2)
    assert float((completed == 3).float().mean()) > 0.9


@torch.no_grad()
def test_a_candidate_is_weighed_by_what_is_kept_hidden():
    prior, grid = made(), torch.randint(K, (2, 1, H, W))
    known = torch.zeros(1, H, W, dtype=torch.bool)
    known[:, 3] = True
    nats = prior.nats_of_known(grid, known)
    wanted = prior.nats(grid, None, known.expand(2, 1, H, W))
    assert torch.equal(nats[:, :, 3], wanted[:, :, 3])
    assert float(nats[:, :, :3].abs().max()) == 0


@torch.no_grad()
@pytest.mark.parametrize("weight", [0.0, 3.0])
def test_guidance_mixes_the_logits_of_both(weight: float):
    prior, grid, mask = made(), torch.randint(K, (3, 1, H, W)), hide(1, (0, 1, 2))
    labels, mask = torch.tensor([0, 1, 1]), mask.expand(3, 1, H, W)
    features = [prior.hidden(grid, some, mask)[:, 0, 1, 2] for some in (labels, None)]
    c, u = (prior.output(0)(values) for values in features)
    drawn = sample_grids(
        prior,
        3,
        (H, W),
        labels=labels,
        known=grid.masked_fill(mask, -1),
        temperature=0.0,
        guidance=weight,
    )
    assert torch.equal(drawn[:, 0, 1, 2], (u + weight * (c - u)).argmax(1))
