"""Imports without the garbage collector."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collector() -> Iterator[None]:
    """Stops the garbage collector while modules are imported, and never looks at their objects
    again.

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
