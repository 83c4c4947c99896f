"""Trains the discriminator beside the tokenizer, and weighs its term of the loss."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from vqtok import distributed
from vqtok.codec import to_device
from vqtok.config import Recipe
from vqtok.losses.discriminator import (
    PatchDiscriminator,
    discriminator_hinge,
    feature_matching,
    generator_hinge,
    lecam,
)
from vqtok.losses.likelihood import PIXEL_DEVIATION
from vqtok.train.context import RunContext
from vqtok.train.loop import learning_rate
from vqtok.train.runtime import DeviceScalar, foreach, fused, set_rate, step_if, sync_free, where
from vqtok.train.state import Learner

# part of all steps that the discriminator learns alone, and again in which its
# weight rises from 0 to full
WARMUP_PART = 0.05
DECAY = 0.99  # of the moving averages (LeCam's own)


@dataclass(frozen=True)
class _StepRecord:
    """Holds what the discriminator's own step needs of the tokenizer's step.

    Nothing is kept of it unless `update` is called, as the step may be skipped.
    """

    reconstruction: Tensor  # (B, C, H, W) in [-1, 1], without gradient
    images: Tensor  # (B, C, H, W)
    grad_norm_ema: Tensor  # the average after this step
    scores: Tensor | None = (
        None  # (2,), of images and reconstructions; None before `compute_gradients`
    )
    loss: Tensor | None = None


class Adversary(nn.Module):
    """Holds a patch discriminator, its optimizer and moving averages: its state_dict and the
    optimizer's are all its state.

    A step calls `schedule`; then `generator_terms`, which the tokenizer minimizes; then
    `compute_gradients` on the same batch; and at last `update`. A skipped step leaves `update` out,
    or calls it with `ok` false, and changes nothing.
    """

    scores: Tensor
    pull: Tensor

    def __init__(self, recipe: Recipe, run: RunContext) -> None:
        super().__init__()
        self.config, self.stage, self.run = recipe.losses, recipe.tokenizer_training, run
        self.discriminator = PatchDiscriminator(recipe.tokenizer.channels)
        # average scores of images and of reconstructions
        self.register_buffer("scores", torch.zeros(2))
        # average length of the gradient at the reconstructions
        self.register_buffer("pull", torch.zeros(()))
        to_device(self, run.device)
        self._rate, self._weight, self._pull_rate, self._score_rate = (
            DeviceScalar(run.device) for _ in range(4)
        )
        # little momentum: its task changes with every step of the tokenizer
        self.optimizer = torch.optim.Adam(
            self.parameters(),
            self._rate.value,
            betas=(0.5, 0.9),
            **fused(run.device),  # type: ignore[arg-type]
        )
        self.start_step = math.ceil(self.config.adversarial_start * self.stage.steps)
        self.warmup_steps = math.ceil(WARMUP_PART * self.stage.steps)
        # the steps before cost nothing
        self.first_update_step = max(0, self.start_step - self.warmup_steps)
        self._last_step: _StepRecord | None = None
        # whether its opinion counts in this step, and whether it learns from it
        self.active = self.learns = False

    @property
    def learner(self) -> Learner:
        return Learner(self, self.optimizer, "adversary.")

    def schedule(self, step: int) -> None:
        """Sets what the step's number decides; before the step's other calls."""
        self.active, self.learns = step >= self.start_step, step >= self.first_update_step
        self._rate.set(learning_rate(self.stage, step))
        set_rate(self.optimizer, self._rate)
        self._weight.set(
            self.config.adversarial * min(1.0, (step - self.start_step + 1) / self.warmup_steps)
        )
        self._pull_rate.set(_following(step - self.start_step))
        self._score_rate.set(_following(step - self.first_update_step))

    def generator_terms(self, reconstruction: Tensor, images: Tensor) -> dict[str, Tensor]:
        """Returns the generator's loss terms by name, none before the start step. Images are (B, C,
        H, W) in [-1, 1].

        The scale of scores and features is arbitrary, so the gradient is given a length.
        VQGAN's adaptive weight (Esser et al.
        2021, arXiv 2012.09841, eq. 7) would compare gradients at the decoder's last layer, but
        that takes the whole backward pass once more, LPIPS included, and torch.compile cannot
        walk its graph twice. Here they are compared at the reconstruction, as EnCodec does it
        (arXiv 2210.13438, eq. 4), where the gradient of the L1 likelihood has a length known
        beforehand: the adversarial weight is relative to that. The length is averaged over steps,
        so that where the discriminator is undecided it says little; and never does a step pull
        harder than the weight allows.
        """
        self._clear()  # a step that was skipped
        terms, grad_norm_ema = {}, self.pull
        if self.active:
            terms, grad_norm_ema = self._weighted_term(reconstruction, images)
        if self.learns:
            self._last_step = _StepRecord(reconstruction.detach(), images, grad_norm_ema)
        return terms

    def _weighted_term(
        self, reconstruction: Tensor, images: Tensor
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Returns the weighted term, and the moving average of its gradient's norm, this step
        included.
        """
        # the discriminator's own weights get no gradient here
        leaf = reconstruction.detach().requires_grad_()
        generator_loss = self._generator_loss(leaf, images)
        (gradient,) = torch.autograd.grad(generator_loss, leaf)
        length = _gradient_norm(gradient)
        grad_norm_ema = _ema(self.pull, length, self._pull_rate)
        l1 = 1 / (2 * PIXEL_DEVIATION * math.sqrt(leaf.numel() * distributed.world_size()))
        factor = self._weight.value * l1 / torch.maximum(grad_norm_ema, length).clamp(min=1e-12)
        # has that gradient, and gets the value of the wish
        term = (reconstruction * (factor * gradient)).sum()
        return {
            "adversarial": term - term.detach() + (factor * generator_loss).detach()
        }, grad_norm_ema

    def _generator_loss(self, leaf: Tensor, images: Tensor) -> Tensor:
        """Returns the loss of reconstructions that the discriminator recognizes, and whose features
        differ from the images'.
        """
        fake = self.discriminator(leaf)
        generator_loss = generator_hinge(fake.scores)
        if self.config.feature_matching:
            with torch.no_grad():
                real = self.discriminator(images)
            generator_loss = generator_loss + self.config.feature_matching * feature_matching(
                fake.features, real.features
            )
        return generator_loss

    def compute_gradients(self) -> dict[str, Tensor]:
        """Computes the discriminator's gradients on the last batch; returns its hinge loss and the
        gradients' norm by name. Weights stay as they are.
        """
        seen = self._last_step
        if seen is None:
            return {}
        bf16, keeps = self.run.bf16, not sync_free(self.run.device)
        with torch.autocast(
            self.run.device.type, torch.bfloat16, enabled=bf16, cache_enabled=keeps
        ):
            output = self.discriminator(torch.cat([seen.images, seen.reconstruction]))
        real, fake = output.scores.chunk(2)
        hinge = discriminator_hinge(real, fake)
        (hinge + self.config.lecam * lecam(real, fake, self.scores)).backward()
        scores, hinge = torch.stack([real.mean(), fake.mean()]).detach(), hinge.detach()
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        distributed.all_reduce_mean(hinge, scores, *gradients)
        # as nn.utils.get_total_norm, which came with torch 2.6
        norm = torch.linalg.vector_norm(torch.stack(foreach._foreach_norm(gradients)))
        self._last_step = replace(seen, scores=scores, loss=hinge)
        return {"discriminator": hinge, "discriminator's gradient norm": norm}

    def update(self, ok: Tensor | None = None) -> dict[str, Tensor]:
        """Steps the discriminator's optimizer at the tokenizer's learning rate; returns its hinge
        loss by name.

        `ok` (bool, scalar): false leaves all as it is.
        """
        seen = self._last_step
        if seen is None:
            return {}
        assert seen.scores is not None, "update() follows compute_gradients()"
        assert seen.loss is not None
        step_if(self.optimizer, ok)
        self.pull.copy_(where(ok, seen.grad_norm_ema, self.pull))
        self.scores.copy_(where(ok, _ema(self.scores, seen.scores, self._score_rate), self.scores))
        self._clear()
        return {"discriminator": seen.loss}

    def _clear(self) -> None:
        """Forgets the last batch and its gradients."""
        self._last_step = None
        self.optimizer.zero_grad(set_to_none=True)


def _gradient_norm(gradient: Tensor) -> Tensor:
    """Returns the norm of the whole batch's gradient. Each process holds its images' part of it,
    times the number of processes.
    """
    if distributed.world_size() == 1:
        return gradient.norm()
    squares = gradient.square().sum()
    distributed.all_reduce_sum(squares)
    return squares.sqrt() / distributed.world_size()


def _following(step: int) -> float:
    """Returns the weight of the newest value in a moving average at step `step`: at first more than
    DECAY says, or the start would be felt for long.
    """
    return 1 - min(DECAY, max(0, 1 + step) / max(1, 10 + step))


@torch.no_grad()
def _ema(average: Tensor, value: Tensor, rate: DeviceScalar) -> Tensor:
    """Returns a moving average after one more step."""
    return average.lerp(value, rate.value)
