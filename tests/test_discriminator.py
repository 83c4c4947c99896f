"""The patch discriminator: its losses by hand, what it learns, and that nothing of it
reaches where it must not.
"""

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import image
from torch import Tensor
from train_helpers import Interrupt, contents, go, log, recipe_for

from vqtok import train as training
from vqtok import weights
from vqtok.config import LossConfig, Recipe, TokenizerStageConfig
from vqtok.data import Shapes
from vqtok.losses import discriminator
from vqtok.losses.likelihood import PIXEL_DEVIATION
from vqtok.networks.vqvae import VQVAE, to_float
from vqtok.train.adversary import Adversary
from vqtok.train.tokenizer import TokenizerTask


def adversary(
    steps: int = 100, start: float = 0.0, precision: str = "fp32", **losses: float
) -> Adversary:
    torch.manual_seed(0)
    stage = TokenizerStageConfig(steps=steps, learning_rate=2e-3, warmup=0)
    config = LossConfig(adversarial_start=start, **{"adversarial": 0.1, **losses})
    recipe = Recipe(losses=config, tokenizer_training=stage, precision=precision)
    return Adversary(recipe, training.RunContext(training.RunSpec(recipe), torch.device("cpu")))


def images(count: int = 2, side: int = 32) -> Tensor:
    """(count, 3, side, side) in [-1, 1], smooth."""
    return torch.stack(
        [
            to_float(torch.from_numpy(image(side, side, seed=i)).permute(2, 0, 1))
            for i in range(count)
        ]
    )


# Losses, by hand


def test_hinge_losses() -> None:
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.0, 1.0])
    assert float(discriminator.discriminator_hinge(real, fake)) == pytest.approx(
        (0 + 0.5 + 2) / 3 + (0 + 1 + 2) / 3
    )
    assert float(discriminator.generator_hinge(fake)) == pytest.approx(2 / 3)
    assert float(discriminator.discriminator_hinge(torch.zeros(4), torch.zeros(4))) == 2


def test_lecam_measures_from_the_average_of_the_other_kind() -> None:
    real, fake = torch.tensor([1.0, 3.0]), torch.tensor([-1.0, 0.0])
    # averages of real and of fake
    found = discriminator.lecam(real, fake, torch.tensor([2.0, -1.0]))
    assert float(found) == pytest.approx((4 + 16) / 2 + (9 + 4) / 2)


def test_feature_matching_is_relative_to_the_real_features() -> None:
    real = [torch.tensor([1.0, -3.0]), torch.tensor([[10.0]])]
    fake = [torch.tensor([2.0, -3.0]), torch.tensor([[5.0]])]
    assert float(discriminator.feature_matching(fake, real)) == pytest.approx(
        (0.5 / 2 + 5 / 10) / 2
    )
    assert float(discriminator.feature_matching(real, real)) == 0
    assert float(discriminator.feature_matching([0 * r for r in real], real)) == pytest.approx(1)
    assert float(
        discriminator.feature_matching([9 * f for f in fake], [9 * r for r in real])
    ) == pytest.approx(0.375)


# The discriminator


@pytest.mark.parametrize(
    ("height", "width", "grid"),
    [(32, 48, (2, 3)), (16, 16, (1, 1)), (18, 33, (2, 3)), (2, 2, (1, 1))],
)
def test_one_score_for_each_patch_of_any_size(
    height: int, width: int, grid: tuple[int, int]
) -> None:
    opinion = discriminator.PatchDiscriminator(3)(torch.rand(2, 3, height, width))
    assert opinion.scores.shape == (2, 1, *grid)


def test_a_score_sees_the_patch_that_the_docstring_says() -> None:
    x = torch.rand(1, 1, 240, 240, requires_grad=True)
    discriminator.PatchDiscriminator(1)(x).scores[0, 0, 7, 7].backward()
    assert x.grad is not None
    rows = x.grad[0, 0].abs().sum(1).nonzero().flatten()
    assert (int(rows[0]), int(rows[-1])) == (7 * 16 + 8 - 40, 7 * 16 + 8 + 39)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_learns_to_tell_noise_from_images(precision: str) -> None:
    it, real, losses = adversary(steps=60, precision=precision), images(4), []
    for step in range(30):
        it.schedule(step)
        it.generator_terms(torch.rand(real.shape) * 2 - 1, real)
        it.compute_gradients()
        losses.append(it.update()["discriminator"])
    assert losses[0] > 1.5
    assert losses[-1] < 0.2
    # the averages follow real and fake
    assert float(it.scores[0]) > 0.3 > -0.3 > float(it.scores[1])
    with torch.no_grad():
        assert float(it.discriminator(real).scores.mean()) > 0.5
        assert float(it.discriminator(torch.rand(real.shape) * 2 - 1).scores.mean()) < -0.5


def test_lecam_holds_the_scores_back() -> None:
    found = []
    for weight in (0.0, 10.0):
        it, real = adversary(lecam=weight), images()
        for step in range(15):
            it.schedule(step)
            it.generator_terms(-real, real)
            it.compute_gradients()
            it.update()
        found.append(float(it.scores[0] - it.scores[1]))
    assert found[1] < 0.7 * found[0]


@pytest.mark.parametrize("spoiled", ["weight", "image"])
def test_what_is_not_finite_is_seen_before_anything_changes(spoiled: str) -> None:
    it, real = adversary(start=0.0), images()
    it.schedule(0)
    it.generator_terms(0.5 * real, real)
    it.compute_gradients()
    it.update()
    if spoiled == "weight":
        with torch.no_grad():
            it.discriminator.head.weight.fill_(math.inf)
    before = {name: value.clone() for name, value in it.state_dict().items()}
    back = 0.5 * real
    it.schedule(1)
    it.generator_terms(back * math.nan if spoiled == "image" else back, real)
    assert not all(map(math.isfinite, it.compute_gradients().values()))
    assert all(torch.equal(value, before[name]) for name, value in it.state_dict().items())
    it.schedule(2)
    it.generator_terms(back, real)  # the step after forgets it
    assert all(p.grad is None for p in it.parameters())


# What reaches whom, when, and how strongly


def test_neither_learns_from_the_other_ones_loss() -> None:
    it, network, real = adversary(), VQVAE(Recipe().tokenizer), images()
    network(real).reconstruction.sum().backward()
    assert all(p.grad is not None for p in network.decoder.parameters())
    network.zero_grad(set_to_none=True)
    back = network(real).reconstruction
    it.schedule(0)
    it.generator_terms(back, real)["adversarial"].backward()
    assert all(p.grad is not None for p in network.decoder.parameters())
    assert all(p.grad is None for p in it.parameters())
    network.zero_grad(set_to_none=True)
    before = [p.detach().clone() for p in it.parameters()]
    it.compute_gradients()
    it.update()
    assert all(p.grad is None for p in network.parameters())
    assert all(not torch.equal(a, b) for a, b in zip(before, it.parameters(), strict=True))


def pull(it: Adversary, back: Tensor, real: Tensor, step: int) -> Tensor:
    """The gradient at the reconstructions; the discriminator does not learn, but its average of
    the pull's length moves on.
    """
    leaf = back.clone().requires_grad_()
    it.schedule(step)
    terms = it.generator_terms(leaf, real)
    if it._last_step is not None:
        it.pull.copy_(it._last_step.grad_norm_ema)
    if terms:
        terms["adversarial"].backward()
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad


@pytest.mark.parametrize("scale", [1.0, 1000.0, 1e-3])
def test_the_pull_is_relative_to_that_of_the_l1_likelihood(scale: float) -> None:
    it, real = adversary(adversarial=0.25, feature_matching=0.0), images()
    with torch.no_grad():
        it.discriminator.head.weight.mul_(scale)
    leaf = (0.5 * real).requires_grad_()
    ((leaf - real).abs().mean() / (2 * PIXEL_DEVIATION)).backward()
    assert leaf.grad is not None
    found = pull(it, 0.5 * real, real, 50)
    assert float(found.norm() / leaf.grad.norm()) == pytest.approx(0.25, rel=1e-4)


def test_the_pull_has_the_direction_of_what_is_wished() -> None:
    it, real = adversary(feature_matching=2.0), images()
    leaf = (0.5 * real).requires_grad_()
    fake, true = it.discriminator(leaf), it.discriminator(real)
    (
        discriminator.generator_hinge(fake.scores)
        + 2 * discriminator.feature_matching(fake.features, true.features)
    ).backward()
    assert leaf.grad is not None
    found = pull(it, 0.5 * real, real, 50)
    assert float(
        torch.cosine_similarity(found.flatten(), leaf.grad.flatten(), dim=0)
    ) == pytest.approx(1, abs=1e-5)


def test_a_step_with_less_to_say_pulls_less_and_none_pulls_more() -> None:
    it, real = adversary(feature_matching=0.0), images()
    usual = [float(pull(it, 0.5 * real, real, step).norm()) for step in range(50, 60)][-1]
    with torch.no_grad():
        it.discriminator.head.weight.mul_(0.1)
    less = float(pull(it, 0.5 * real, real, 60).norm())
    with torch.no_grad():
        it.discriminator.head.weight.mul_(1000)
    more = float(pull(it, 0.5 * real, real, 61).norm())
    assert less < 0.2 * usual
    assert more == pytest.approx(usual, rel=1e-3)


def test_it_first_learns_and_then_is_asked_more_and_more() -> None:
    it, real = adversary(steps=100, start=0.6), images()
    lengths, learned = [], []
    for step in range(100):
        lengths.append(float(pull(it, 0.5 * real, real, step).norm()))
        learned.append(it._last_step is not None)
        it._last_step = None
        assert it.active == (step >= 60)
    assert learned.index(True) == 55
    assert all(learned[55:])
    assert lengths[:60] == [0.0] * 60
    assert [length / lengths[-1] for length in lengths[60:66]] == pytest.approx(
        [0.2, 0.4, 0.6, 0.8, 1, 1], rel=0.01
    )


# Runs


def losses_for(**more: Any) -> dict[str, Any]:
    return {"adversarial": 0.2, "adversarial_start": 0.5, **more}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_stopped_and_resumed_run_equals_the_uninterrupted_one(
    tmp_path: Path, precision: str
) -> None:
    data = Shapes(24)
    levels = {"levels": 3, "level_dropout": 0.5, "normalize": False}
    recipe = recipe_for(
        data,
        tokenizer=levels,
        losses=losses_for(),
        precision=precision,
        tokenizer_training={"ema": 0.9},
    )
    assert go(tmp_path / "whole", recipe, data, stage="tokenizer")
    out = tmp_path / "pieces"
    # of 8: it learns from 3, is asked from 4
    assert not go(out, recipe, data, Interrupt("tokenizer", 2), stage="tokenizer")
    for step in (3, 4, 5, 7):
        assert not go(
            out, recipe, data, Interrupt("tokenizer", step), resume=True, stage="tokenizer"
        )
    assert go(out, recipe, data, resume=True, stage="tokenizer")
    assert contents(out) == contents(tmp_path / "whole")
    assert log(out) == log(tmp_path / "whole")
    early, late = log(out)
    assert (early["step"], late["step"]) == (4, 8)
    assert "adversarial" not in early
    assert late["discriminator"] > 0
    assert late["adversarial"] != 0
    state = weights.load_weights(out / "tokenizer.state.safetensors", "state").tensors
    moments = [name for name in state if name.startswith("adversary.optimizer.")]
    assert len([name for name in moments if name.endswith("exp_avg")]) == 8
    assert all(state[name].any() for name in ("adversary.network.scores", "adversary.network.pull"))


def test_without_it_nothing_is_made_and_nothing_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vqtok.train.tokenizer.Adversary", None)  # making one would fail
    data = Shapes(24)
    assert go(
        tmp_path,
        recipe_for(data, losses={"adversarial": 0.0, "adversarial_start": 0.0}),
        data,
        stage="tokenizer",
    )
    state = weights.load_weights(tmp_path / "tokenizer.state.safetensors", "state").tensors
    assert {name.split(".")[0] for name in state} == {"network", "optimizer", "window"}
    assert not any("adversarial" in line or "discriminator" in line for line in log(tmp_path))


def test_before_it_is_asked_the_tokenizer_is_the_same_as_without_it(tmp_path: Path) -> None:
    data = Shapes(24)
    recipe = recipe_for(data, losses=losses_for(adversarial_start=1.0))
    assert go(tmp_path / "with", recipe, data, stage="tokenizer")
    assert go(tmp_path / "without", recipe_for(data), data, stage="tokenizer")
    with_it, without = (
        contents(tmp_path / name)["tokenizer.safetensors"] for name in ("with", "without")
    )
    assert with_it == without
    assert go(
        tmp_path / "asked",
        recipe.override({"losses": {"adversarial_start": 0.0}}),
        data,
        stage="tokenizer",
    )
    assert contents(tmp_path / "asked")["tokenizer.safetensors"] != without


def test_the_last_weights_are_kept_once_it_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The validation does not know what the adversary wants, and would keep those from before."""
    scores = iter([1.0, 2.0, 3.0, 4.0] * 2)
    monkeypatch.setattr(TokenizerTask, "_score", lambda self, metrics: next(scores))
    data = Shapes(24)
    recipe = recipe_for(data, losses=losses_for(), tokenizer_training={"validate_every": 2})
    assert go(tmp_path / "with", recipe, data, stage="tokenizer")
    assert weights.read_meta(tmp_path / "with" / "tokenizer.safetensors")["record"]["step"] == 8
    without = replace(recipe, losses=LossConfig())
    assert go(tmp_path / "without", without, data, stage="tokenizer")
    assert weights.read_meta(tmp_path / "without" / "tokenizer.safetensors")["record"]["step"] == 2


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("c++") or shutil.which("g++")), reason="no C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own imports
def test_with_a_compiled_tokenizer(tmp_path: Path) -> None:
    data, blocks = Shapes(24), {"encoder_blocks": 0, "decoder_blocks": 0}
    recipe = recipe_for(data, tokenizer=blocks, losses=losses_for(adversarial_start=0.3))
    assert go(tmp_path / "compiled", recipe, data, stage="tokenizer", compiled=True)
    assert go(tmp_path / "plain", recipe, data, stage="tokenizer")
    compiled, plain = (log(tmp_path / name)[-1] for name in ("compiled", "plain"))
    for name in ("adversarial", "discriminator", "val_psnr"):
        assert compiled[name] == pytest.approx(plain[name], rel=0.02)
