"""Writes a model as the files of another program; `config.registry` lists the formats."""

import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from vqtok import config, files, model_registry, weights
from vqtok.config import TokenizerConfig
from vqtok.config.registry import EXPORT_FORMATS


@dataclass(frozen=True)
class Exported:
    """Files of another program's model."""

    what: str  # the program's word for such a model
    contents: Mapping[str, bytes]  # by name
    tensors: int  # how many there are

    @property
    def bytes(self) -> int:
        return sum(map(len, self.contents.values()))

    def write(self, folder: Path, force: bool) -> None:
        """Writes them into a folder, made if missing.

        OutputError where one exists, unless `force`.
        """
        files.write_all(folder, self.contents, force)


# Makes the files of the tokenizer in a folder. ModelError where the program has no layers for it,
# FormatError where the tensors are not those of the config.
Exporter = Callable[[weights.Weights, TokenizerConfig, model_registry.ModelFolder], Exported]


def export_model(folder: model_registry.ModelFolder, to: str = "diffusers") -> Exported:
    """Makes the files of a model's tokenizer in one of EXPORT_FORMATS.

    Errors as `weights.load_weights` and Exporter.
    """
    stored = weights.load_weights(folder.tokenizer, "tokenizer")
    settings = config.from_dict(TokenizerConfig, stored.config, str(folder.tokenizer))
    exporter: Exporter = pkgutil.resolve_name(EXPORT_FORMATS[to])
    return exporter(stored, settings, folder)
