"""Holds the study's results, formats its table, and writes sentences about what it shows and what
it does not.
"""

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vqtok import files
from vqtok.study.systems import Shape

RESULT = "result.json"

UNIFORM = 8.0  # bits per dimension of a coder that knows nothing: log2 of 256
BUDGET_TOLERANCE = 0.05  # what a training time may be off before it is said to be another


@dataclass(frozen=True)
class Result:
    """One row of the table. Bits are per dimension: per pixel and channel."""

    settings: str  # digest of all that training and measuring depended on
    system: str
    what: str
    parameters: int  # numbers in its weights files
    symbols: int  # of an image, drawn one after another; latent numbers of a VAE, drawn at once
    alphabet: int  # values that a symbol can take; 0: a real number
    bits_latents: float
    bits_pixels: float  # of an image given its latents; 0 where they are the image
    kind: str  # exact, or what kind of bound
    test_pictures: int
    samples: int
    sample_seconds: float
    shown: str  # what the samples are: pixels that were drawn, or the likelihood's mean
    training_seconds: float  # of tokenizer, encoding and prior together
    tokenizer_seconds: float  # of these, the tokenizer's and those of encoding
    steps: int
    pictures: int  # seen by the network that gives the likelihood, repeated ones included
    tokenizer_steps: int
    tokenizer_pictures: int
    precision: str

    @property
    def bits(self) -> float:
        """Returns bits per dimension, every one counted."""
        return self.bits_latents + self.bits_pixels

    @property
    def raw(self) -> bool:
        """Returns whether it models the pixels themselves, without latents."""
        return self.bits_pixels == 0


def read_result(folder: Path, settings: str) -> Result | None:
    """Reads the result in a system's folder, if it has these settings."""
    with suppress(OSError, ValueError, TypeError):
        result = Result(**json.loads((folder / RESULT).read_text(encoding="utf-8")))
        return result if result.settings == settings else None
    return None


def write_result(folder: Path, result: Result) -> None:
    files.write_bytes(
        folder / RESULT, (json.dumps(asdict(result), indent=1) + "\n").encode(), force=True
    )


@dataclass(frozen=True)
class Anchor:
    """A published figure on CIFAR-10, in bits per dimension."""

    system: str
    bits: float
    source: str


# Of larger models, trained far longer, on GPUs.
ANCHORS = (
    Anchor("VIMCO", 5.14, "van den Oord et al. 2017, arXiv 1711.00937, section 4.1"),
    Anchor("VQ-VAE", 4.67, "van den Oord et al. 2017, arXiv 1711.00937, section 4.1"),
    Anchor("VAE", 4.51, "van den Oord et al. 2017, arXiv 1711.00937, section 4.1"),
    Anchor("PixelCNN", 3.14, "van den Oord et al. 2016, arXiv 1601.06759"),
    Anchor("Gated PixelCNN", 3.03, "van den Oord et al. 2016, arXiv 1606.05328"),
    Anchor("PixelCNN++", 2.92, "Salimans et al. 2017, arXiv 1701.05517"),
    Anchor("PixelSNAIL", 2.85, "Chen et al. 2017, arXiv 1712.09763"),
)


@dataclass(frozen=True)
class Study:
    """Results and facts of a study so far."""

    results: tuple[Result, ...]
    shape: Shape
    samples: int
    facts: dict[str, Any] = field(default_factory=dict)  # data, seed, command, machine

    @property
    def headers(self) -> list[str]:
        return [
            "system",
            "parameters",
            "symbols",
            "bits/dim",
            "what it is",
            "latents",
            "pixels",
            f"s for {self.samples} samples",
            "training s",
            "steps",
            "images seen",
        ]

    def rows(self) -> list[list[str]]:
        return [_row(result) for result in self.results]


def _row(r: Result) -> list[str]:
    """Formats a result in words and figures."""
    parts = ["", f"{r.bits:.3f}"] if r.raw else [f"{r.bits_latents:.3f}", f"{r.bits_pixels:.3f}"]
    return [
        r.system,
        f"{r.parameters / 1e6:.2f} M",
        f"{r.symbols:,}",
        f"{r.bits:.3f}",
        r.kind,
        *parts,
        f"{r.sample_seconds:.1f}",
        f"{r.training_seconds:.0f}",
        f"{r.tokenizer_steps:,} + {r.steps:,}" if r.tokenizer_steps else f"{r.steps:,}",
        f"{r.tokenizer_pictures:,} + {r.pictures:,}" if r.tokenizer_steps else f"{r.pictures:,}",
    ]


def anchor_rows() -> list[list[str]]:
    """Returns the published figures, and the bits of a coder without a model."""
    return [["uniform", f"{UNIFORM:.2f}", "8 bits for each number"]] + [
        [a.system, f"{a.bits:.2f}", a.source] for a in ANCHORS
    ]


def sentences(study: Study) -> list[str]:
    """Says what the table shows; each sentence follows from its figures."""
    found = study.results
    if not found:
        return ["No system is finished yet."]
    parts = [_best(found), *_symbols(found), *_kinship(found), *_latents(found)]
    return [part for part in parts if part]


def _best(found: Sequence[Result]) -> str:
    order = sorted(found, key=lambda r: r.bits)
    best, worst = order[0], order[-1]
    if len(found) == 1:
        return (
            f"{best.system} takes {best.bits:.2f} bits per dimension ({best.kind}), "
            f"where a coder without a model takes {UNIFORM:.2f}."
        )
    return (
        f"After equal time, {best.system} takes the fewest bits per dimension, {best.bits:.2f} "
        f"({best.kind}), and {worst.system} the most, {worst.bits:.2f} ({worst.kind}); a coder "
        f"without a model takes {UNIFORM:.2f}."
    )


def _symbols(found: Sequence[Result]) -> list[str]:
    """Compares the number of symbols and the time to sample, for systems that differ in nothing
    else.
    """
    by_name, said = {r.system: r for r in found}, []
    for r in found:
        raw = by_name.get(r.system.removeprefix("vq-"))
        if r.system.startswith("vq-") and raw is not None and r.sample_seconds > 0:
            factor = raw.sample_seconds / r.sample_seconds
            speed = (
                f"{factor:.1f} times faster" if factor >= 1 else f"{1 / factor:.1f} times slower"
            )
            said.append(
                f"{r.system} draws {r.symbols:,} symbols an image where {raw.system} draws "
                f"{raw.symbols:,}, {raw.symbols / r.symbols:.0f} times fewer, and its "
                f"{r.samples} samples come {speed} ({r.sample_seconds:.1f} s against "
                f"{raw.sample_seconds:.1f} s)."
            )
    return said


def _kinship(found: Sequence[Result]) -> list[str]:
    """Compares a softmax with a mixture of logistics, which knows that 99 is next to 100."""
    by_name = {r.system: r for r in found}
    plain, kin = by_name.get("pixelcnn"), by_name.get("pixelcnn-logistic")
    if plain is None or kin is None:
        return []
    difference = plain.bits - kin.bits
    outcome = f"saves {difference:.2f}" if difference >= 0 else f"costs {-difference:.2f}"
    return [
        (
            "With a mixture of logistics in place of a softmax over 256 values, and with "
            "first vectors for the gray levels that lie in order, a PixelCNN knows that 99 is "
            f"next to 100: it {outcome} bits per dimension in the same time ({kin.bits:.2f} "
            f"against {plain.bits:.2f})."
        )
    ]


def _latents(found: Sequence[Result]) -> list[str]:
    """Splits the bits of bounds into latents and pixels."""
    return [
        (
            f"Of the {r.bits:.2f} bits of {r.system}, {r.bits_latents:.2f} are for the latents and "
            f"{r.bits_pixels:.2f} for the pixels given them."
        )
        for r in found
        if not r.raw
    ]


def _taken(found: Sequence[Result], budget: float) -> list[str]:
    """Says what the systems took of the budget, and which of them took another time."""
    if not found or budget <= 0:
        return []
    taken = sorted((r.training_seconds, r.system) for r in found)
    said = f"Of the {budget:.0f} s they took {taken[0][0]:.0f} to {taken[-1][0]:.0f}"
    apart = [
        f"{system} {seconds / budget:.0%}"
        for seconds, system in taken
        if abs(seconds - budget) > BUDGET_TOLERANCE * budget
    ]
    if not apart:
        return [f"{said}."]
    return [
        f"{said}: the time was not equal, and figures of these are not to be compared with the "
        f"others' as if it were: {', '.join(apart)} of the budget."
    ]


def cautions(study: Study) -> list[str]:
    """Says what the table does not show."""
    facts, first = study.facts, study.results[0] if study.results else None
    minutes = f"{facts.get('budget in seconds', 0) / 60:.3g} minutes"
    where = f"{facts.get('threads', '?')} threads of {facts.get('processor', '?')}"
    said = [
        (
            f"Each system had {minutes} on {where}, counted as steps and validations, and "
            "is far from converged: the table compares what each learns in that time, not "
            "what each can reach. The published figures are of larger models that were "
            "trained far longer, on GPUs."
        ),
        *_taken(study.results, facts.get("budget in seconds", 0)),
        (
            "Equal time is not equal size: "
            "widths and rates were chosen by trials of one to three minutes, and one seed was run."
        ),
        (
            "Exact is -log2 p(x). A bound counts every bit of one way to describe an image, its "
            "latents and the pixels given them; other latents could give the same image, so the "
            "true figure is at most the bound."
        ),
    ]
    if study.shape.channels == 3:
        said.append(
            "Systems over raw pixels read the image plane by plane: red whole, then green given "
            "red, then blue given both. The published models read the three values of a pixel "
            "together. Either order counts every bit; which of them a small network learns more "
            "easily, this study does not tell."
        )
    if first is not None:
        said.append(
            f"Bits are means over {first.test_pictures:,} images "
            f"({facts.get('test set', 'unseen')}), the same for all systems, in float32, from the "
            "weights as they are saved. Bits per dimension say little about how samples look."
        )
    return said
