"""Finds and loads the model that a command's options name."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING

from vqtok import model_registry
from vqtok.cli import output
from vqtok.errors import UsageError

if TYPE_CHECKING:
    from vqtok.bulk.shards import Manifest
    from vqtok.codec import Model
    from vqtok.codes import Codes, Compact
    from vqtok.config import TokenizerConfig
    from vqtok.images import Range
    from vqtok.model_registry import ModelFolder


class ModelOptions:
    """The options --model, --device and --precision.

    The model is searched for once, and its header is read once, when first asked for.
    """

    def __init__(
        self,
        name: str | None,
        device: str | None,
        precision: str = "fp32",
        verbose: bool = False,
        default: str = model_registry.DEFAULT_MODEL,
    ) -> None:
        """default is the model where neither `name` nor VQTOK_MODEL says one."""
        self.name, self.device, self.precision, self.verbose = name, device, precision, verbose
        self.default = default

    @cached_property
    def folder(self) -> "ModelFolder":
        """Returns the model's folder. Raises ModelError where there is none."""
        return model_registry.find_model(self.name, self.default)

    @cached_property
    def config(self) -> "TokenizerConfig":
        """Returns the tokenizer's settings, from the file's header. Raises FormatError where it is
        damaged.
        """
        from vqtok import weights

        return weights.tokenizer_config(self.folder.tokenizer)

    def value_range(self, given: str | None) -> "Range | None":
        """Returns the range of deep images: as given, else the model's; None is auto. Raises
        UsageError.
        """
        from vqtok import images, weights

        if given is not None:
            return images.parse_range(given)
        record = weights.read_meta(self.folder.tokenizer, "tokenizer")["record"]
        return images.range_of_record(record)

    def check_levels(self, levels: int | None) -> None:
        """Raises UsageError where the model has fewer levels, before torch is imported."""
        if levels is None or levels <= self.config.levels:
            return
        from vqtok import codes

        raise UsageError(
            f"the model {self.folder.name} has {codes.count_levels(self.config.levels)}, "
            f"not {levels}",
            codes.levels_fix(self.config.levels),
        )

    def load(self) -> "Model":
        """Loads the model that --model names. Errors as `codec.load`."""
        from vqtok import codec

        folder = self.folder
        with _without_collector():
            model = codec.load(folder, self.device, self.precision)
        self._say(model)
        return model

    def load_for(self, codes: "Codes | Compact | Manifest") -> "Model":
        """Loads the model that made these codes, whatever --model says."""
        from vqtok import codec

        with _without_collector():
            model = codec.load_for(codes, self.device, self.precision)
        self._say(model)
        return model

    def _say(self, model: "Model") -> None:
        if self.verbose:
            output.say(
                f"model {model.name} ({model.fingerprint}) from {model.folder.path}, "
                f"{model.device.type}, {model.precision}"
            )


@contextmanager
def _without_collector() -> Iterator[None]:
    """Stops the garbage collector while torch is imported, and never looks at those objects again.

    Imports make objects that stay: looking for garbage among them takes 0.1 s of the 0.9 s that
    torch takes. For the command only: a library must not freeze its user's objects.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if collecting:
            gc.enable()
