"""The options --effort, --goal and --target of `encode`: how close decoded images must be, and how
long to search.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vqtok.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

    from vqtok.codec import FastModel, Model
    from vqtok.codes import Codes, RateTarget

Effort = Annotated[
    int,
    typer.Option(
        "--effort",
        metavar="N",
        help="0 to 9: search for better codes. 3 takes little time; from 4 on minutes an image.",
        min=0,
        max=9,
    ),
]
Goal = Annotated[
    str, typer.Option("--goal", metavar="GOAL", help="What --effort is for: looks, or psnr.")
]
Target = Annotated[
    str | None,
    typer.Option(
        "--target",
        metavar="MEASURE:X",
        help="Use as few levels as reach psnr:30, ssim:0.9, ms-ssim:0.95 or lpips:0.2.",
    ),
]
Lpips = Annotated[
    Path | None,
    typer.Option("--lpips", metavar="FILE", help="Weights of LPIPS, for --target lpips:X."),
]
MEASURES = ("psnr", "ssim", "ms-ssim", "lpips")


@dataclass(frozen=True)
class Quality:
    """Settings of the search for codes, and the quality that a decoded image must reach."""

    effort: int = 0
    goal: str = "looks"
    measure: "Callable[[np.ndarray, np.ndarray], float] | None" = None
    least: float = 0.0  # of the measure; negative for LPIPS, of which less is better
    target: str = ""  # as typed
    compact: bool = False  # the file will be: the search minds its bytes

    def encode(
        self, model: "FastModel | Model", images: "list[np.ndarray]", target: "RateTarget"
    ) -> "tuple[Codes, str]":
        """Encodes images of one size (with a measure, one alone) at the levels that the quality
        asks for; where no level suffices, at all of them, with what to say.

        Where a rate is to decide the levels, all of them, without a search: see `again`.
        """
        if target.bpp is not None or target.max_bytes is not None:
            return model.encode_batch(images), ""
        if self.measure is None:
            levels = target.levels if self.effort else None
            return self._search(model, images, levels), ""
        codes = model.encode_batch(images)
        for count in range(1, model.config.levels + 1):
            if self.effort:
                codes = self._search(model, images, count)
            if self._reached(model, images[0], codes.first_levels(count)):
                return codes.first_levels(count), ""
        return codes, f"all {model.config.levels} levels do not reach {self.target}"

    def again(
        self, model: "FastModel | Model", images: "list[np.ndarray]", codes: "Codes"
    ) -> "Codes":
        """Searches for codes of just the levels that a rate has left."""
        return self._search(model, images, codes.levels)

    def _search(
        self, model: "FastModel | Model", images: "list[np.ndarray]", levels: int | None
    ) -> "Codes":
        return model.encode_batch(
            images, levels, effort=self.effort, goal=self.goal, compact=self.compact
        )

    def _reached(self, model: "FastModel | Model", image: "np.ndarray", codes: "Codes") -> bool:
        assert self.measure is not None
        return self.measure(model.decode(codes), image) >= self.least


def parse(
    effort: int, goal: str, target: str | None, lpips: Path | None, rate: "RateTarget"
) -> Quality:
    """Reads the options as typed; loads the weights of LPIPS. UsageError, errors of load_lpips."""
    if goal != "looks":  # the default needs no torch to be known
        from vqtok.codec.effort import GOALS

        if goal not in GOALS:
            raise UsageError(f"--goal is {goal!r}", f"choose {' or '.join(GOALS)}")
        if not effort:
            raise UsageError(
                "--goal is for a search, and none is asked for", "add --effort 3, or leave it out"
            )
    if target is None:
        if lpips is not None:
            raise UsageError("--lpips is for --target lpips:X", "give both, or leave it out")
        return Quality(effort, goal)
    if rate.is_set:
        raise UsageError(
            "--target does not go with --levels, --bpp or --max-bytes", "leave one of them out"
        )
    name, _, text = target.partition(":")
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if name not in MEASURES or not math.isfinite(value):
        raise UsageError(
            f"--target is {target!r}", f"write it like psnr:30; measures are {', '.join(MEASURES)}"
        )
    if (name == "lpips") != (lpips is not None):
        raise UsageError("--target lpips:X and --lpips FILE go together", "give both")
    least = -value if name == "lpips" else value
    return Quality(effort, goal, _measure(name, lpips), least, target)


def _measure(name: str, lpips: Path | None) -> "Callable[[np.ndarray, np.ndarray], float]":
    """Returns a measure of (decoded, given) images, of which more is better."""
    from vqtok import metrics

    if lpips is None:
        return {"psnr": metrics.psnr, "ssim": metrics.ssim, "ms-ssim": metrics.ms_ssim}[name]
    import torch

    from vqtok.losses.lpips import load_lpips

    network = load_lpips(lpips)

    def closeness(decoded: "np.ndarray", given: "np.ndarray") -> float:
        a, b = (
            (torch.from_numpy(image).permute(2, 0, 1)[None] / 127.5 - 1).expand(-1, 3, -1, -1)
            for image in (decoded, given)
        )
        with torch.inference_mode():
            return -float(network(a, b))

    return closeness
