"""Imports without the garbage collector.

Imports make objects that stay: looking for garbage among them takes 0.1 s of the 0.9 s that torch
takes, and 0.01 s of the rest. For the command only: a library must not freeze its user's objects.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


def resume() -> None:
    """Starts the garbage collector, which `vqtok.__main__` stops, and never looks at objects again
    that were made until then.
    """
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


@contextmanager
def without_collector() -> Iterator[None]:
    """Stops the garbage collector while modules are imported, and never looks at their objects
    again.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if collecting:
            gc.enable()
