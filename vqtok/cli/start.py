"""A quick start: torch is imported while a thread reads the model, and
without the garbage collector.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vqtok.cli import output
from vqtok.prefetch import run_in_thread

if TYPE_CHECKING:
    from vqtok.codec import Model
    from vqtok.model_registry import StoredTokenizer


def load_model(
    model: str | None, device: str | None, precision: str, verbose: bool = False
) -> "Model":
    """The model that the options ask for."""
    from vqtok import model_registry

    # torch takes seconds to import: a wrong name is told before
    folder = model_registry.find_model(model)
    return load_model_with(
        lambda: model_registry.read_tokenizer(folder), device, precision, verbose
    )


def load_model_with(
    read: "Callable[[], StoredTokenizer]", device: str | None, precision: str, verbose: bool = False
) -> "Model":
    """The model of the tokenizer that `read` gives:
    its file is read and hashed beside the import of torch. Errors as `codec.load`.
    """
    reading = run_in_thread(read, leave=True)
    with _without_collector():
        from vqtok import codec
    loaded = codec.Model(reading.result(), codec.pick_device(device), precision)
    if verbose:
        output.say(
            f"model {loaded.name} ({loaded.fingerprint}) from {loaded.folder.path}, "
            f"{loaded.device.type}, {precision}"
        )
    return loaded


@contextmanager
def _without_collector() -> Iterator[None]:
    """Imports make objects that stay: looking for garbage among them takes 0.1 s of
    the 0.9 s that torch takes.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if collecting:
            gc.enable()
