"""Converts between codes and the streams of compact files by a model's integer prior."""

from collections.abc import Callable
from functools import partial

from vqtok import config, model_registry, weights
from vqtok.codes import Codes, Compact, images_sharing, index_dtype, to_compact
from vqtok.config import ENTROPY_CODES_MAX, EntropyConfig
from vqtok.errors import FormatError, ModelError
from vqtok.integer_prior import IntegerInference, integer_tensor_shapes


class EntropyCoder:
    """Codes grids into the streams of compact files, and decodes them, by a model's integer prior,
    without its tokenizer.
    """

    def __init__(self, folder: model_registry.ModelFolder, tokenizer: str | None = None) -> None:
        """Loads the prior of a model that has one; `tokenizer` is its tokenizer's fingerprint,
        where known.

        Raises InputError, FormatError, ModelError.
        """
        path, tokenizer = (
            folder.entropy,
            tokenizer or weights.tokenizer_fingerprint(folder.tokenizer),
        )
        assert path is not None
        stored = weights.load_weights(path, "entropy")
        settings = config.from_dict(EntropyConfig, stored.meta["config"], str(path))
        if settings.codebook_size > ENTROPY_CODES_MAX:
            raise FormatError(
                f"{path} has {settings.codebook_size} codes",
                "the file is damaged, or written by a newer vqtok",
            )
        if stored.meta["record"].get("tokenizer") != tokenizer:
            raise ModelError(
                f"{path} is the entropy prior of another tokenizer than the one "
                f"beside it ({tokenizer})",
                "train it again: vqtok train --stage entropy",
            )
        weights.check_tensors(stored.tensors, integer_tensor_shapes(settings), str(path))
        self.tokenizer, self.config = tokenizer, settings
        self.fingerprint = weights.fingerprint(stored.tensors)
        self.prior = IntegerInference(settings, stored.tensors)

    def pack(self, codes: Codes) -> Compact:
        """Returns the compact form, bit-packed where that is smaller."""
        return self.pack_levels(codes)(codes.levels)

    def pack_levels(self, codes: Codes) -> Callable[[int], Compact]:
        """Codes the levels once; the result gives the compact form of any number of the first
        levels.
        """
        self._check(codes)
        coded = self.prior.code(codes.indices)

        def pack(count: int) -> Compact:
            kept = codes.first_levels(count)
            sharing = images_sharing(kept.shape)
            streams = partial(coded.streams, count, sharing=sharing)
            return to_compact(kept, self.fingerprint, streams, sharing)

        return pack

    def unpack(self, packed: Compact) -> Codes:
        """Decodes codes that this prior coded.

        ModelError: another prior coded them. FormatError: damaged.
        """
        if packed.prior is None or not self.fingerprint.startswith(packed.prior):
            here = self.fingerprint[: len(packed.prior or self.fingerprint)]
            raise ModelError(
                f"the codes need the entropy prior {packed.prior} of model {packed.model}, "
                f"but the one here is {here}",
                "unpack them with the model that packed them",
                "give the model they were packed with: --model",
            )
        self._check(packed)
        n, *grid = packed.shape
        indices, carried = self.prior.decode_all(
            packed.streams, *grid, sharing=packed.sharing, images=n
        )
        return packed.with_indices(indices.astype(index_dtype(packed.codebook_size)), carried)

    def _check(self, codes: Codes | Compact) -> None:
        if codes.fingerprint != self.tokenizer:
            raise ModelError(
                f"the codes were made with model {codes.model} ({codes.fingerprint}), "
                f"the entropy prior is one for {self.tokenizer}",
                f"use the model {codes.model} with that fingerprint",
                "leave --model out to look for the right one",
            )
        if codes.codebook_size != self.config.codebook_size or codes.levels > self.config.levels:
            raise ModelError(
                f"the codes do not fit the model {codes.model}",
                "the codes file is damaged: make it again",
            )


def find_coder(packed: Compact, model: str | None = None) -> EntropyCoder | None:
    """Loads the entropy coder of the model that the codes name, or of the one given by name or
    path; None where that model has no entropy prior. Raises ModelError, FormatError.
    """
    folder = (
        model_registry.find_model(model)
        if model
        else model_registry.find_by_fingerprint(packed.model, packed.fingerprint)
    )
    return None if folder.entropy is None else EntropyCoder(folder)
