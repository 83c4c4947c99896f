"""What NumPy multiplies matrices with: OpenBLAS, MKL, or another library."""

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np

# Functions that set and get the number of threads: of NumPy's wheels, of distributions, of MKL.
_THREADS = (
    ("scipy_openblas_set_num_threads64_", "scipy_openblas_get_num_threads64_"),
    ("scipy_openblas_set_num_threads", "scipy_openblas_get_num_threads"),
    ("openblas_set_num_threads64_", "openblas_get_num_threads64_"),
    ("openblas_set_num_threads", "openblas_get_num_threads"),
    ("MKL_Set_Num_Threads", "MKL_Get_Max_Threads"),
)
_lock = threading.Lock()
_inside = 0  # how many threads of this process are in `one_thread`
_before = 0


@cache
def thread_functions() -> tuple[Any, Any] | None:
    """What sets and gets the number of threads of NumPy's BLAS; None where that is not known."""
    try:
        extension = import_module("numpy._core._multiarray_umath")
        library = ctypes.CDLL(extension.__file__)  # a symbol is looked for in what it needs, too
    except (ImportError, AttributeError, OSError, TypeError):
        return None
    for setter, getter in _THREADS:
        if hasattr(library, setter) and hasattr(library, getter):
            return getattr(library, setter), getattr(library, getter)
    return None


@contextmanager
def one_thread() -> Iterator[None]:
    """NumPy's BLAS works with one thread inside: for products too small to share.

    Two threads on two busy cores wait for each other at every product: 4.9 s, where one takes 1.3.
    """
    global _inside, _before
    functions = thread_functions()
    if functions is None:
        yield
        return
    set_threads, get_threads = functions
    with _lock:
        _inside += 1
        if _inside == 1:
            _before = get_threads()
            set_threads(1)
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                set_threads(_before)


@cache
def multiplies_exactly() -> bool:
    """Whether float32 products of integers come out exact.

    Some libraries can be told, by a variable of the environment, to round factors to bfloat16.
    """
    draw = np.random.default_rng(0)
    left = draw.integers(-255, 256, (64, 250))
    right = draw.integers(-127, 128, (250, 64))
    product = left.astype(np.float32) @ right.astype(np.float32)
    return bool((product == left @ right).all())
