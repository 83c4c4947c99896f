"""What holds for a prior of any architecture:
causal, honest about levels and labels, equal by sampler and full pass, learns, samples.
"""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from vqtok.config import PriorConfig
from vqtok.config.registry import PRIORS, SAMPLERS
from vqtok.priors import Prior, base, build_prior, cross_entropy
from vqtok.sampling import sample_grids

K = 7
GRIDS = [(4, 6), (6, 3), (1, 5), (5, 1), (1, 1)]
NAMES = ("cat", "dog", "car")
every = pytest.mark.parametrize("architecture", sorted(PRIORS))
# those that say how likely a grid is; what the masked one does is in test_priors_masked
causal = pytest.mark.parametrize(
    "architecture", sorted(name for name in PRIORS if PRIORS[name].load().has_likelihood)
)


def made(
    architecture: str, levels: int = 1, h: int = 4, w: int = 6, labels: tuple[str, ...] = NAMES
) -> Prior:
    """A small prior whose every parameter matters: noise on all of them."""
    torch.manual_seed(0)
    config = PriorConfig(
        K, levels, width=8, layers=2, dropout=0.2, labels=labels, architecture=architecture, heads=2
    )
    prior = build_prior(config.for_grid(h, w)).eval()
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return prior


def full(prior: Prior, indices: Tensor, labels: Tensor | None = None) -> Tensor:
    with torch.no_grad():
        return prior(indices, labels)


@causal
@pytest.mark.parametrize("levels", [1, 3])
def test_an_index_changes_only_what_comes_after_it(architecture: str, levels: int) -> None:
    h, w = 4, 6
    prior = made(architecture, levels, h, w)
    indices = torch.randint(K, (1, levels, h, w))
    before = full(prior, indices).flatten(1, 3)  # (1, L*h*w, K)
    reached = torch.zeros(levels * h * w, dtype=torch.bool)
    for place in range(levels * h * w):
        changed = indices.clone()
        changed.view(-1)[place] = (changed.view(-1)[place] + 1) % K
        difference = (full(prior, changed).flatten(1, 3) - before).abs().amax((0, 2))
        assert float(difference[: place + 1].max()) == 0, place
        reached |= difference > 1e-6
    assert bool(reached[1:].all())  # all but the first depend on something
    assert not bool(reached[0])


@causal
@pytest.mark.parametrize("levels", [1, 3])
def test_the_next_place_sees_its_neighbors(architecture: str, levels: int) -> None:
    """Left, above, above to the right: no blind spot; and the same place of the level below."""
    h, w = 4, 6
    prior = made(architecture, levels, h, w)
    indices = torch.randint(K, (1, levels, h, w))
    before = full(prior, indices)
    seen = [
        (levels - 1, 2, 2),
        (levels - 1, 1, 3),
        (levels - 1, 1, 4),
        *([(levels - 2, 2, 3)] if levels > 1 else []),
    ]
    for level, i, j in seen:
        changed = indices.clone()
        changed[0, level, i, j] = (changed[0, level, i, j] + 1) % K
        assert float((full(prior, changed) - before)[0, levels - 1, 2, 3].abs().max()) > 1e-6, (
            level,
            i,
            j,
        )


@causal
@pytest.mark.parametrize("levels", [1, 3])
@pytest.mark.parametrize(("h", "w"), GRIDS)
def test_the_sampler_gives_the_logits_of_the_full_pass(
    architecture: str, levels: int, h: int, w: int
) -> None:
    prior = made(architecture, levels, h, w)
    indices = torch.randint(K, (4, levels, h, w))
    for labels in (None, torch.tensor([0, 2, -1, 1])):
        wanted = full(prior, indices, labels)
        rows = prior.label_rows(labels, 4, indices.device)
        with torch.inference_mode():
            sampler = SAMPLERS[architecture].load()(prior, 4, h, w, rows)
            for level in range(levels):
                known = indices.clone()
                known[:, level + 1 :] = 0  # not drawn yet
                cursor = sampler.start_level(level, known)
                native = sampler.backend.native
                for i in range(h):
                    cursor.next_row(native(indices[:, level, i - 1]) if i else None)
                    for j in range(w):
                        cursor.next_column(native(indices[:, level, i, j - 1]) if j else None)
                        logits = torch.as_tensor(cursor.logits())
                        torch.testing.assert_close(
                            logits, wanted[:, level, i, j], atol=1e-4, rtol=0
                        )


def test_every_prior_has_a_sampler_and_names_its_settings() -> None:
    assert list(PRIORS) == list(SAMPLERS)
    for architecture, entry in PRIORS.items():
        prior = made(architecture)
        assert type(prior) is entry.load()
        assert all(hasattr(prior.config, name) for name in entry.settings)
        assert entry.help
        assert SAMPLERS[architecture].help


@every
def test_the_first_few_levels_do_alone(architecture: str) -> None:
    prior = made(architecture, 3)
    indices = torch.randint(K, (2, 3, 4, 6))
    torch.testing.assert_close(
        full(prior, indices[:, :2]), full(prior, indices)[:, :2], atol=1e-5, rtol=0
    )


@every
def test_labels_matter_where_there_are_any(architecture: str) -> None:
    indices = torch.randint(K, (3, 1, 4, 6))
    prior = made(architecture)
    a, b = (full(prior, indices, torch.full((3,), label)) for label in (0, 1))
    assert float((a - b).abs().amax((0, 1, 4)).min()) > 1e-6  # at every place
    torch.testing.assert_close(full(prior, indices), full(prior, indices, torch.full((3,), -1)))
    plain = made(architecture, labels=())
    torch.testing.assert_close(full(plain, indices), full(plain, indices, torch.tensor([0, 1, 2])))


@every
@pytest.mark.parametrize("levels", [1, 2])
def test_nats_are_those_of_the_logits_also_in_parts(
    architecture: str, levels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    prior = made(architecture, levels)
    indices = torch.randint(K, (3, levels, 4, 6))
    wanted = -full(prior, indices).log_softmax(-1).gather(-1, indices[..., None])[..., 0]
    for at_once in (base.LOGITS_AT_ONCE, 77):
        monkeypatch.setattr(base, "LOGITS_AT_ONCE", at_once)
        torch.testing.assert_close(prior.nats(indices).detach(), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@causal
def test_it_learns_what_it_samples(architecture: str) -> None:
    """Each index of a row is the one to its left plus one, the second level repeats the first:
    close to no bits, and so are its samples.
    """
    torch.manual_seed(0)
    config = PriorConfig(K, 2, width=16, layers=2, dropout=0.0, architecture=architecture, heads=2)
    prior = build_prior(config.for_grid(3, 5))
    # all there are, each once
    start = torch.cartesian_prod(*3 * [torch.arange(K - 4)]).view(-1, 1, 3, 1)
    indices = (start + torch.arange(5)).expand(-1, 2, 3, 5).contiguous()
    optimizer = torch.optim.Adam(prior.parameters(), 0.01)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, 100)
    for _ in range(100):
        loss = prior.loss(indices)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(prior.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    entropy = 3 * torch.tensor(K - 4.0).log2()  # three rows' starts; all else follows
    bits = float(cross_entropy(prior, indices).mean())
    assert float(entropy) - 0.1 < bits < float(entropy) + 6 < 30 * torch.tensor(float(K)).log2()
    drawn = sample_grids(prior.eval(), 32, (3, 5))
    follows = (
        (drawn[..., 1:] == drawn[..., :-1] + 1).double().mean(),
        (drawn[:, 0] == drawn[:, 1]).double().mean(),
    )
    assert min(map(float, follows)) > 0.8


@every
def test_known_places_stay_and_the_seed_decides_the_rest(architecture: str) -> None:
    prior = made(architecture, 2)
    known = torch.full((3, 2, 4, 6), -1)
    known[:, :, 1:3, 2:5] = torch.randint(K, (3, 2, 2, 3))
    first, second = (
        sample_grids(prior, 3, (4, 6), seed=5, known=known, labels=1) for _ in range(2)
    )
    assert torch.equal(first, second)
    assert torch.equal(first[known >= 0], known[known >= 0])
    assert not torch.equal(first, sample_grids(prior, 3, (4, 6), seed=6, known=known, labels=1))
    # As models are loaded: another order of the weights in memory, the same images.
    assert torch.equal(
        first,
        sample_grids(
            prior.to(memory_format=torch.channels_last),  # type: ignore[call-overload]
            3,
            (4, 6),
            seed=5,
            known=known,
            labels=1,
        ),
    )


@every
def test_bfloat16_training_gives_float32_losses(architecture: str) -> None:
    prior = made(architecture, 2).train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = prior.loss(torch.randint(K, (2, 2, 4, 6)), torch.tensor([0, -1]))
    assert loss.dtype == torch.float32
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in prior.parameters())


@every
def test_a_prior_has_no_more_weights_than_its_levels_ask_for(architecture: str) -> None:
    one, three = (
        sum(
            p.numel()
            for p in build_prior(replace(made(architecture).config, levels=n)).parameters()
        )
        for n in (1, 3)
    )
    assert one < three


@every
def test_dropout_follows_the_seed_and_rests_in_evaluation(architecture: str) -> None:
    prior, indices = made(architecture), torch.randint(K, (2, 1, 4, 6))

    def loss(seed: int) -> float:
        torch.manual_seed(seed)
        return float(prior.loss(indices).detach())

    assert loss(1) == loss(2)
    prior.train()
    assert loss(1) == loss(1) != loss(2)


@pytest.mark.parametrize("levels", [1, 2])
@pytest.mark.parametrize("architecture", sorted(set(PRIORS) - {"fvsbn"}))
def test_a_prior_starts_from_the_codebooks(architecture: str, levels: int):
    """Codes with near vectors start with near embeddings, and are about as likely next."""
    torch.manual_seed(0)
    codebooks = torch.randn(levels, K, 4)
    codebooks[:, 1] = codebooks[:, 0] + 0.01
    config = PriorConfig(
        K, levels, width=64, layers=1, architecture=architecture, heads=2, labels=NAMES
    )
    prior = build_prior(config.for_grid(2, 2))
    before = [float(weight.std()) for weight in _tables(prior)]
    base.start_from_codebooks(prior, codebooks)
    for table, old in zip(_tables(prior), before, strict=True):
        assert float(table.std()) == pytest.approx(old, rel=0.3)
        for level in table.split(K):  # half is random still
            assert torch.cosine_similarity(level[0], level[1], dim=0) > 0.25
    indices = torch.randint(K, (64, levels, 2, 2))
    assert float(prior.loss(indices).detach()) == pytest.approx(math.log(K), abs=0.5)
    assert torch.equal(codebooks[:, 1], codebooks[:, 0] + 0.01)


def _tables(prior: Prior) -> list[Tensor]:
    """The embeddings of codes, and the last layers."""
    found = [m.weight for name, m in prior.named_modules() if name.endswith("embedding")]
    return [
        weight.detach()
        for weight in [*found, *(prior.output(i).weight for i in range(prior.config.levels))]
    ]


def test_gray_values_keep_their_order():
    prior = build_prior(PriorConfig(K, width=8, layers=1, output="logistic"))
    before = {name: value.clone() for name, value in prior.state_dict().items()}
    base.start_from_codebooks(prior, torch.randn(1, K, 4))
    assert all(torch.equal(value, before[name]) for name, value in prior.state_dict().items())
