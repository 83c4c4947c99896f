"""Reads the next image and writes the last result on threads, while the present image is
encoded; or works on several images at a time.
"""

import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, wait
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")
S = TypeVar("S")


def run_in_thread(call: Callable[[], R], leave: bool = False) -> "Future[R]":
    """Runs a call in a thread of its own and returns its result.

    The process waits for it at its end, unless it may `leave`.
    """
    future: Future[R] = Future()
    threading.Thread(target=_settle, args=(future, call), daemon=leave).start()
    return future


def _settle(future: "Future[R]", call: Callable[[], R]) -> None:
    try:
        future.set_result(call())
    except BaseException as error:
        future.set_exception(error)


def read_ahead(read: Callable[[T], R], items: Sequence[T]) -> "Iterator[Future[R]]":
    """Yields what `read` makes of each item in turn.

    The first is begun at once, and each other when the one before it is given out.

    No more: images can be large. A read that hangs does not keep an
    interrupted command from ending.
    """
    first = run_in_thread(lambda: read(items[0]), leave=True)

    def rest() -> "Iterator[Future[R]]":
        present = first
        for item in items[1:]:
            present.exception()  # one thread at a time
            following = run_in_thread(lambda item=item: read(item), leave=True)
            yield present
            present = following
        yield present

    return rest()


def write_behind(
    work: "Callable[[T, S], Future[R]]", items: Iterable[tuple[T, S]]
) -> "Generator[tuple[T, Future[R]], None, None]":
    """Yields each item with what `work` has begun for it, one item late; an error of `work` itself
    is raised there, too.

    Closed early, it waits for what has begun, so that no file appears after a command has ended.
    """
    begun: list[tuple[T, Future[R]]] = []  # the one given out, and the next
    try:
        for item, given in items:
            try:
                future = work(item, given)
            except Exception as error:
                future = Future[R]()
                future.set_exception(error)
            begun.append((item, future))
            if len(begun) > 1:
                yield begun[0]
                del begun[0]
        yield from begun
    finally:
        wait([future for _, future in begun])


def in_parallel(
    work: Callable[[T], R], items: Iterable[T], count: int
) -> "Iterator[tuple[T, Future[R]]]":
    """Yields each item with what `work` makes of it on one of `count` threads, in order.

    As many again wait for who takes them, at most. Threads that hang do not keep an interrupted
    command from ending.
    """
    todo: queue.SimpleQueue[tuple[T, Future[R]] | None] = queue.SimpleQueue()

    def run() -> None:
        while (given := todo.get()) is not None:
            item, future = given
            if future.set_running_or_notify_cancel():
                _settle(future, lambda item=item: work(item))

    for _ in range(count):
        threading.Thread(target=run, daemon=True).start()
    waiting: deque[tuple[T, Future[R]]] = deque()
    try:
        for item in items:
            waiting.append((item, Future[R]()))
            todo.put(waiting[-1])
            if len(waiting) >= 2 * count:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        for _, future in waiting:
            future.cancel()
        for _ in range(count):
            todo.put(None)
