"""The discriminator beside the tokenizer: when it learns, when it is asked, and how much its opinion counts."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from vqtok import distributed
from vqtok.codec import place
from vqtok.config import Recipe
from vqtok.losses.adversarial import PatchDiscriminator, discriminator_hinge, feature_matching, generator_hinge, lecam
from vqtok.losses.likelihood import PIXEL_DEVIATION
from vqtok.train.loop import Run, learning_rate
from vqtok.train.runtime import Rate, fused, set_rate, step_if, sync_free, where
from vqtok.train.state import Learner

LEAD = 0.05         # part of all steps that the discriminator learns alone, and again in which its weight rises from 0 to full
DECAY = 0.99        # of the moving averages (LeCam's own)


@dataclass(frozen=True)
class _Seen:
    """What a step of the tokenizer has shown. Nothing of it lasts before `update`: a step may turn out to be skipped."""

    reconstruction: Tensor      # (B, C, H, W) in [-1, 1], without gradient
    pictures: Tensor            # (B, C, H, W)
    pull: Tensor                # the average after this step
    scores: Tensor | None = None        # (2,), of pictures and reconstructions; None before `weigh`
    loss: Tensor | None = None


class Adversary(nn.Module):
    """A patch discriminator with its optimizer and moving averages: its state_dict and the optimizer's are all its state.

    At each step, after `schedule`, the tokenizer minimizes `generator_terms`; `weigh` says whether the discriminator can learn from
    the same batch, and `update` lets it. A step that is skipped has no `update`, or one that is not ok, and leaves no trace.
    """

    scores: Tensor
    pull: Tensor

    def __init__(self, recipe: Recipe, run: Run) -> None:
        super().__init__()
        self.config, self.stage, self.run = recipe.losses, recipe.tokenizer_training, run
        self.discriminator = PatchDiscriminator(recipe.tokenizer.channels)
        self.register_buffer("scores", torch.zeros(2))      # average scores of pictures and of reconstructions
        self.register_buffer("pull", torch.zeros(()))       # average length of the gradient at the reconstructions
        place(self, run.device)
        self._rate, self._weight, self._pull_rate, self._score_rate = (Rate(run.device) for _ in range(4))
        self.optimizer = torch.optim.Adam(      # little momentum: its task changes with every step of the tokenizer
            self.parameters(), self._rate.value, betas=(0.5, 0.9), **fused(run.device)      # type: ignore[arg-type]
        )
        self.asked_from = math.ceil(self.config.adversarial_start * self.stage.steps)
        self.lead = math.ceil(LEAD * self.stage.steps)
        self.learns_from = max(0, self.asked_from - self.lead)      # the steps before cost nothing
        self._seen: _Seen | None = None
        self.asked = self.learns = False        # whether its opinion counts in this step, and whether it learns from it

    @property
    def learner(self) -> Learner:
        return Learner(self, self.optimizer, "adversary.")

    def schedule(self, step: int) -> None:
        """Sets what the step's number decides; before the step's other calls."""
        self.asked, self.learns = step >= self.asked_from, step >= self.learns_from
        self._rate.set(learning_rate(self.stage, step))
        set_rate(self.optimizer, self._rate)
        self._weight.set(self.config.adversarial * min(1.0, (step - self.asked_from + 1) / self.lead))
        self._pull_rate.set(_following(step - self.asked_from))
        self._score_rate.set(_following(step - self.learns_from))

    def generator_terms(self, reconstruction: Tensor, pictures: Tensor) -> dict[str, Tensor]:
        """What the tokenizer is to minimize besides, by name; nothing before the discriminator is asked. (B, C, H, W) in [-1, 1].

        The scale of scores and features is arbitrary, so the gradient is given a length. VQGAN's adaptive weight (Esser et al.
        2021, arXiv 2012.09841, eq. 7) would compare gradients at the decoder's last layer, but that takes the whole backward pass
        once more, LPIPS included, and torch.compile cannot walk its graph twice. Here they are compared at the reconstruction,
        as EnCodec does it (arXiv 2210.13438, eq. 4), where the gradient of the L1 likelihood has a length known beforehand: the
        adversarial weight is relative to that. The length is averaged over steps, so that where the discriminator is
        undecided it says little; and never does a step pull harder than the weight allows.
        """
        self._forget()      # a step that was skipped
        terms, pull = {}, self.pull
        if self.asked:
            terms, pull = self._pulled(reconstruction, pictures)
        if self.learns:
            self._seen = _Seen(reconstruction.detach(), pictures, pull)
        return terms

    def _pulled(self, reconstruction: Tensor, pictures: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The term, and the average length of the gradient, this one included."""
        leaf = reconstruction.detach().requires_grad_()     # the discriminator's own weights get no gradient here
        wish = self._wish(leaf, pictures)
        (gradient,) = torch.autograd.grad(wish, leaf)
        length = _length(gradient)
        pull = _followed(self.pull, length, self._pull_rate)
        l1 = 1 / (2 * PIXEL_DEVIATION * math.sqrt(leaf.numel() * distributed.size()))
        factor = self._weight.value * l1 / torch.maximum(pull, length).clamp(min=1e-12)
        term = (reconstruction * (factor * gradient)).sum()         # has that gradient, and gets the value of the wish
        return {"adversarial": term - term.detach() + (factor * wish).detach()}, pull

    def _wish(self, leaf: Tensor, pictures: Tensor) -> Tensor:
        """What the reconstructions are to be: taken for pictures, and like them in the discriminator's features."""
        fake = self.discriminator(leaf)
        wish = generator_hinge(fake.scores)
        if self.config.feature_matching:
            with torch.no_grad():
                real = self.discriminator(pictures)
            wish = wish + self.config.feature_matching * feature_matching(fake.features, real.features)
        return wish

    def weigh(self) -> dict[str, Tensor]:
        """The gradient of its own loss on the batch just seen: that hinge loss and the gradient's norm by name. Nothing changes yet."""
        seen = self._seen
        if seen is None:
            return {}
        bf16, keeps = self.run.precision == "bf16", not sync_free(self.run.device)
        with torch.autocast(self.run.device.type, torch.bfloat16, enabled=bf16, cache_enabled=keeps):
            opinion = self.discriminator(torch.cat([seen.pictures, seen.reconstruction]))
        real, fake = opinion.scores.chunk(2)
        hinge = discriminator_hinge(real, fake)
        (hinge + self.config.lecam * lecam(real, fake, self.scores)).backward()
        scores, hinge = torch.stack([real.mean(), fake.mean()]).detach(), hinge.detach()
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        distributed.mean_(hinge, scores, *gradients)
        norm = nn.utils.get_total_norm(gradients)
        self._seen = replace(seen, scores=scores, loss=hinge)
        return {"discriminator": hinge, "discriminator's gradient norm": norm}

    def update(self, ok: Tensor | None = None) -> dict[str, Tensor]:
        """One step of the discriminator along that gradient, at the tokenizer's learning rate; its hinge loss by name.

        `ok` (bool, scalar): false leaves all as it is.
        """
        seen = self._seen
        if seen is None:
            return {}
        assert seen.scores is not None, "update() follows weigh()"
        assert seen.loss is not None
        step_if(self.optimizer, ok)
        self.pull.copy_(where(ok, seen.pull, self.pull))
        self.scores.copy_(where(ok, _followed(self.scores, seen.scores, self._score_rate), self.scores))
        self._forget()
        return {"discriminator": seen.loss}

    def _forget(self) -> None:
        """Leaves no trace of the batch just seen."""
        self._seen = None
        self.optimizer.zero_grad(set_to_none=True)


def _length(gradient: Tensor) -> Tensor:
    """That of the whole batch's gradient; each process has its pictures' part of it, times the number of processes."""
    if distributed.size() == 1:
        return gradient.norm()
    squares = gradient.square().sum()
    distributed.sum_(squares)
    return squares.sqrt() / distributed.size()


def _following(step: int) -> float:
    """How far a moving average follows in its step number `step`; at first more than DECAY says, or the start would be felt for long."""
    return 1 - min(DECAY, max(0, 1 + step) / max(1, 10 + step))


@torch.no_grad()
def _followed(average: Tensor, value: Tensor, rate: Rate) -> Tensor:
    """A moving average after one step more."""
    return average.lerp(value, rate.value)
