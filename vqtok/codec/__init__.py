"""Holds the library: load a model, encode images, decode codes, sample new ones.

The one place where file, array, tensor and network meet.

>>> model = load("photo")
>>> codes = model.encode("photo.jpg")       # Codes: a grid of indices
>>> image = model.decode(codes)             # uint8 (H, W, C), of the original's size

Names are imported on first use, so that `load` reads the model's file while torch is imported.
"""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from vqtok import model_registry
from vqtok.errors import VqtokError
from vqtok.lazy import lazy_names
from vqtok.model_registry import ModelFolder, StoredTokenizer
from vqtok.onnx.session import start
from vqtok.prefetch import run_in_thread

if TYPE_CHECKING:
    from vqtok.codec.entropy_coder import EntropyCoder, find_coder
    from vqtok.codec.fast import FastModel
    from vqtok.codec.inputs import parse_keep
    from vqtok.codec.loading import (
        Device,
        build_tokenizer,
        load_tokenizer,
        pick_device,
        to_device,
        tokenizer_from_weights,
    )
    from vqtok.codec.model import Model
    from vqtok.codec.several import Several
    from vqtok.codes import Codes, Compact

__all__ = [
    "EntropyCoder",
    "FastModel",
    "Model",
    "Several",
    "build_tokenizer",
    "find_coder",
    "load",
    "load_fast",
    "load_fast_for",
    "load_for",
    "load_stored",
    "load_tokenizer",
    "parse_keep",
    "pick_device",
    "to_device",
    "tokenizer_from_weights",
]

FEWEST = 4  # images of which several are worked on at a time


def load(
    model: "str | os.PathLike[str] | ModelFolder | None" = None,
    device: "Device" = None,
    precision: str = "fp32",
) -> "Model":
    """Loads a model by name ("photo", "cifar10"), folder or tokenizer file.

    None takes VQTOK_MODEL, else photo. device is auto, cpu, cuda, cuda:1 or mps, a torch.device, or
    the number of a GPU (None: VQTOK_DEVICE, else auto, which takes the fastest there is).
    precision is fp32, bf16 (faster, and some indices differ), or fast: bf16 where the device
    computes with it, else fp32.
    Raises ModelError, InputError, FormatError, UsageError.
    """
    # found first: torch takes seconds to import, and a wrong name is reported before
    folder = (
        model
        if isinstance(model, ModelFolder)
        else model_registry.find_model(None if model is None else os.fspath(model))
    )
    return _load(lambda: model_registry.read_tokenizer(folder), device, precision)


class MadeBy(Protocol):
    """Says which model made it, as codes and the manifest of codes shards do."""

    @property
    def model(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...


def load_for(
    codes: "Codes | Compact | MadeBy", device: "Device" = None, precision: str = "fp32"
) -> "Model":
    """Loads the model that made these codes, wherever the search path has it; else as `load`."""
    return _load(
        lambda: model_registry.read_by_fingerprint(codes.model, codes.fingerprint),
        device,
        precision,
    )


def several_at_once(model: "FastModel | Model", images: int, encodes: bool) -> "Several | None":
    """Returns what works on several of so many images at a time, where that is quicker and gives
    equal results; else None.
    """
    from vqtok.codec.fast import FastModel

    if images < FEWEST or isinstance(model, FastModel) or not model.works_in_parts:
        return None
    from vqtok.codec.several import Several

    found = Several(model, images)
    if encodes:
        found.check(model)
    return found if found.count > 1 else None


def _load(read: Callable[[], StoredTokenizer], device: "Device", precision: str) -> "Model":
    """Reads and hashes the tokenizer on a thread, beside the import of torch."""
    reading = run_in_thread(read, leave=True)
    from vqtok.codec.loading import pick_device
    from vqtok.codec.model import Model

    return Model(reading.result(), pick_device(device), precision)


def load_fast(
    folder: ModelFolder, load_model: "Callable[[StoredTokenizer], Model]"
) -> "FastModel | Model":
    """Loads a model that encodes and decodes on the CPU by onnxruntime, and starts without torch.

    `load_model` makes the one with torch, once something needs it; at once where onnxruntime cannot
    be imported, or the network is not one that it can run. Errors as `load`.
    """
    return _load_fast(lambda: model_registry.read_tokenizer(folder), load_model)


def load_fast_for(
    codes: "Codes | Compact | MadeBy", load_model: "Callable[[StoredTokenizer], Model]"
) -> "FastModel | Model":
    """Loads the model that made these codes as `load_fast` does.

    The decoder of the model of that name is made ready while its fingerprint is computed.
    """
    found = _start_fast(lambda: model_registry.read_named(codes.model), load_model)
    if found is not None:
        found.prepare_decoder()
        if found.fingerprint == codes.fingerprint:
            return found
    return _load_fast(
        lambda: model_registry.read_by_fingerprint(codes.model, codes.fingerprint), load_model
    )


def _load_fast(
    read: Callable[[], StoredTokenizer], load_model: "Callable[[StoredTokenizer], Model]"
) -> "FastModel | Model":
    reading = run_in_thread(read, leave=True)
    # of a damaged file, torch's own checks say what is wrong
    return _start_fast(reading.result, load_model) or load_model(reading.result())


def _start_fast(
    read: Callable[[], StoredTokenizer | None], load_model: "Callable[[StoredTokenizer], Model]"
) -> "FastModel | None":
    """Makes a model of what `read` gives, on a thread beside the import of onnxruntime; None where
    that cannot be imported, where there is nothing, and where the model is damaged.
    """
    reading = run_in_thread(read, leave=True)
    from vqtok.codec.fast import FastModel

    try:
        start()
        stored = reading.result()
        return None if stored is None else FastModel(stored, load_model)
    except (ImportError, VqtokError):
        return None


def load_stored(
    stored: StoredTokenizer, device: "Device" = None, precision: str = "fp32"
) -> "Model":
    """Makes a model of a tokenizer that has been read. Errors as `load`."""
    return _load(lambda: stored, device, precision)


if not TYPE_CHECKING:  # type checkers would take every name for one that is here
    __getattr__, __dir__ = lazy_names(
        __name__,
        __all__,
        entropy_coder="EntropyCoder find_coder",
        fast="FastModel",
        inputs="parse_keep",
        loading="build_tokenizer load_tokenizer pick_device to_device tokenizer_from_weights",
        model="Model",
        several="Several",
    )
