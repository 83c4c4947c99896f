"""Describes one training run, as asked for and with all defaults filled in."""

import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from vqtok.config import Recipe
from vqtok.data import DataOptions


@dataclass(frozen=True)
class RunSpec:
    """Describes one training run: `vqtok.train.open_run` takes it as asked for, and returns it
    filled in.

    Of a run as asked for, `recipe` is not looked at: `preset` and `values` say what it is to be.
    Filled in, all fields down to `digest` are set: run.json keeps those, and two specs are equal
    where those are. An empty text means none.
    """

    recipe: Recipe = field(default_factory=Recipe)
    data: str = ""  # filled in: an absolute path; "": the built-in shapes, or those of the run
    pictures: int = 0
    command: str = ""
    compiled: bool = False
    perceptual: str = ""  # file with the weights of the perceptual loss
    init: str = ""  # model whose tokenizer's weights are the first ones; filled in: its file
    # whose codes it makes, as `weights.kept_codes`, where the encoder stays as it is
    codes: dict[str, str] = field(default_factory=dict)
    job: str = ""  # the torchrun that last went on with it
    options: DataOptions = field(default_factory=DataOptions)  # what the user said about the data
    digest: str = ""  # of the images' names and sizes; "" where it was not kept
    # version that decoded the images so far; "" where it was not kept
    pillow: str = field(default="", compare=False)
    # how it was asked for
    preset: str | None = field(default=None, compare=False)  # None: by the data
    values: dict[str, Any] = field(default_factory=dict, compare=False)  # settings, as in a recipe
    origin: str = field(default="the recipe", compare=False)  # of the values, for messages
    folder: Path = field(default=Path(), compare=False)  # of the run
    stage: str = field(default="all", compare=False)
    resume: bool = field(default=False, compare=False)
    force: bool = field(default=False, compare=False)  # may replace a run that is there

    @property
    def perceptual_path(self) -> Path | None:
        return Path(self.perceptual) if self.perceptual else None

    def kept(self) -> dict[str, Any]:
        """Returns the fields down to `digest`, as JSON can hold them."""
        found = {f.name: getattr(self, f.name) for f in fields(self) if f.compare}
        return found | {"recipe": self.recipe.to_dict(), "options": self.options.to_dict()}


def spec_to_json(spec: RunSpec) -> bytes:
    """Writes the fields down to `digest`, for another process."""
    return json.dumps(spec.kept()).encode()


def spec_from_json(data: bytes) -> RunSpec:
    """Reads what `spec_to_json` wrote."""
    values = json.loads(data)
    options = DataOptions.of(**values.pop("options"))
    return RunSpec(Recipe().override(values.pop("recipe")), options=options, **values)
