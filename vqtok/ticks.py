"""Passes on how far a long computation is: its loop reports, and a caller may listen.

Only the thread that listens hears: a computation on another thread reports to no one.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_listener: ContextVar[Callable[[int, int], None] | None] = ContextVar("listener", default=None)


def tell(done: int, total: int) -> None:
    """Says that so many of all steps of the present computation are done."""
    listener = _listener.get()
    if listener is not None:
        listener(done, total)


@contextmanager
def listen(listener: Callable[[int, int], None]) -> Iterator[None]:
    """Calls `listener(done, total)` for what is computed inside."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)
