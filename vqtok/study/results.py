"""What the study finds out about a system, as a record in the system's folder."""

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from vqtok import files

RESULT = "result.json"


@dataclass(frozen=True)
class Result:
    """One row of the table. Bits are per dimension: per pixel and channel."""

    settings: str  # digest of all that training and measuring depended on
    system: str
    what: str
    parameters: int  # numbers in its weights files
    symbols: int  # of a picture, drawn one after another; latent numbers of a VAE, drawn at once
    alphabet: int  # values that a symbol can take; 0: a real number
    bits_latents: float
    bits_pixels: float  # of a picture given its latents; 0 where they are the picture
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
        """Bits per dimension, every one counted."""
        return self.bits_latents + self.bits_pixels

    @property
    def raw(self) -> bool:
        """Whether it models the pixels themselves, without latents."""
        return self.bits_pixels == 0


def read(folder: Path, settings: str) -> Result | None:
    """The result in a system's folder, if it is of these settings."""
    with suppress(OSError, ValueError, TypeError):
        result = Result(**json.loads((folder / RESULT).read_text(encoding="utf-8")))
        return result if result.settings == settings else None
    return None


def write(folder: Path, result: Result) -> None:
    files.write_bytes(
        folder / RESULT, (json.dumps(asdict(result), indent=1) + "\n").encode(), force=True
    )
