"""What a model knows of codes without its network; without PyTorch."""

import shlex
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

from vqtok import config, images, model_registry
from vqtok.codes import (
    Codes,
    Compact,
    count_levels,
    has_levels,
    levels_fix,
    to_compact,
    unpack,
)
from vqtok.config import TokenizerConfig
from vqtok.errors import ModelError, UsageError

if TYPE_CHECKING:
    from vqtok.codec.entropy_coder import EntropyCoder


class CodesModel:
    """A model by its files: whose codes it makes, and their compact form."""

    def __init__(self, tokenizer: model_registry.StoredTokenizer) -> None:
        """Raises FormatError where the config is damaged."""
        self.folder = tokenizer.folder
        self.name: str = self.folder.name
        self.record: dict[str, Any] = tokenizer.packed.meta["record"]
        self.config: TokenizerConfig = config.from_dict(
            TokenizerConfig, tokenizer.packed.meta["config"], str(self.folder.tokenizer)
        )

    @property
    def fingerprint(self) -> str:
        """Returns the fingerprint that the model's codes bear."""
        raise NotImplementedError

    @property
    def range(self) -> images.Range | None:
        """Returns the values of deep images that became 0 and 255 in training; None where that is
        not recorded.
        """
        return images.range_of_record(self.record)

    @cached_property
    def entropy_coder(self) -> "EntropyCoder | None":
        """Returns what compact files are coded with; None where the model has no entropy prior."""
        if self.folder.entropy is None:
            return None
        from vqtok.codec.entropy_coder import EntropyCoder

        return EntropyCoder(self.folder, self.fingerprint)

    def pack(self, codes: Codes) -> Compact:
        """Returns the compact form of codes: `write_codes` makes a small file of it.

        Bit-packed where the model has no entropy prior.
        """
        self._check(codes)
        return to_compact(codes) if self.entropy_coder is None else self.entropy_coder.pack(codes)

    def pack_levels(self, codes: Codes) -> Callable[[int], Compact]:
        """Codes the levels once; the result gives the compact form of any number of the first
        levels.
        """
        self._check(codes)
        if self.entropy_coder is None:
            return lambda count: to_compact(codes.first_levels(count))
        return self.entropy_coder.pack_levels(codes)

    def unpack(self, codes: Codes | Compact) -> Codes:
        """Gives codes of either form in the plain one. Raises ModelError, FormatError."""
        if isinstance(codes, Compact):
            self._check(codes)
        return unpack(codes, lambda _: self.entropy_coder)

    def _count(self, levels: int | None) -> int:
        """Returns how many levels are meant: all, unless fewer are asked for.

        UsageError where the model has not so many.
        """
        if levels is None:
            return self.config.levels
        if has_levels(levels, self.config.levels):
            return int(levels)
        raise UsageError(
            f"the model {self.name} has {count_levels(self.config.levels)}, not {levels}",
            levels_fix(self.config.levels),
        )

    def _check(self, codes: Codes | Compact) -> None:
        """Raises ModelError where another model made the codes."""
        if codes.fingerprint != self.fingerprint:
            raise ModelError(
                f"the codes were made with model {codes.model} ({codes.fingerprint}), "
                f"but this is {self.name} ({self.fingerprint})",
                *self._other_model(codes.model),
            )
        mine = (self.config.codebook_size, self.config.downsample, self.config.channels)
        theirs = (codes.codebook_size, codes.downsample, codes.channels)
        if mine != theirs or codes.levels > self.config.levels:
            raise ModelError(
                f"the codes do not fit the model {self.name}",
                "the codes file is damaged: make it again",
            )

    def _other_model(self, name: str) -> tuple[str, str]:
        """Returns how to get at the model that codes name, in Python and in a command."""
        if name == self.name:
            again = "the model was trained again since"
            return (
                f"decode them with the model of that fingerprint; {again}",
                f"leave --model out to look for it; {again}",
            )
        if any(name == model.name for model in model_registry.list_models()):
            return (
                f"decode them with vqtok.load({name!r})",
                f"leave --model out to look for it; or give --model {shlex.quote(name)}",
            )
        # that name alone would find nothing
        return (
            f"decode them with vqtok.load(the path of {name}'s folder)",
            f"leave --model out to look for it; or give the path of {name}'s folder with --model",
        )
