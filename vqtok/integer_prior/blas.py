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
# So many products of numbers OpenBLAS sums, on processors with AVX-512, without first copying both
# factors, which for the few rows of a step takes as long as the product.
AT_ONCE = 1_000_000
COLUMNS, COLUMNS_STEP = 32, 16  # of a part of a product: at least, and a multiple of
PANEL, PANEL_ROWS = 256, 16  # columns, and at least so many rows at a time
_lock = threading.Lock()
_inside = 0  # how many threads of this process are in `one_thread`
_before = 0


@cache
def thread_functions() -> tuple[Any, Any] | None:
    """Returns the functions that set and get the number of threads of NumPy's BLAS; None where they
    are not known.
    """
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
    """Makes NumPy's BLAS work with one thread while the context is open: for products too small to
    share.

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


def multiply(x: np.ndarray, weight: np.ndarray, out: np.ndarray) -> None:
    """Multiplies matrices (n, i) and (i, o) into out, (n, o); by columns where AT_ONCE allows."""
    columns, most = weight.shape[1], AT_ONCE // max(1, x.size)
    if most >= columns or most < COLUMNS:
        np.matmul(x, weight, out=out)
        return
    parts = -(-columns // (most // COLUMNS_STEP * COLUMNS_STEP))
    size = -(-columns // (parts * COLUMNS_STEP)) * COLUMNS_STEP
    for start in range(0, columns, size):
        part = slice(start, start + size)
        np.matmul(x, weight[:, part], out=out[:, part])


def panels(weight: np.ndarray) -> np.ndarray:
    """Cuts a matrix (i, o) into panels (p, i, o / p) of at most PANEL columns, if o allows."""
    inputs, columns = weight.shape
    count = columns // PANEL if columns % PANEL == 0 else 1
    return np.ascontiguousarray(weight.reshape(inputs, count, -1).swapaxes(0, 1))


def multiply_panels(x: np.ndarray, weight: np.ndarray, out: np.ndarray) -> None:
    """Multiplies a matrix (n, i) by panels (p, i, c) into out, (n, p * c)."""
    count, inputs, columns = weight.shape
    rows = max(PANEL_ROWS, AT_ONCE // (inputs * columns))
    found = out.reshape(len(x), count, columns).swapaxes(0, 1)
    for start in range(0, len(x), rows):
        part = slice(start, start + rows)
        np.matmul(x[part], weight, out=found[:, part])


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
