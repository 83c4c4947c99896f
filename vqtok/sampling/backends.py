"""Calls of NumPy and BLAS that are prepared once and then only run:
at n = 1 most of torch's time on a CPU is starting its calls.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch

# multiplications: NumPy starts quicker (16x64x64:
# 1.0 us, torch 1.5), torch's BLAS is faster (64x128x128: 11, NumPy 16)
SMALL = 2**18
Array = np.ndarray
Call = Callable[[], object]


def matmul_call(a: Array, b: Array, out: Array) -> Call:
    """The call that writes the matrix product a @ b into out, in whichever
    library is quicker at its size.
    """
    assert b.flags.c_contiguous
    rows, out = a.reshape(-1, len(b)), out.reshape(-1, b.shape[1])
    if rows.shape[0] * b.size < SMALL:
        return partial(rows.dot, b, out)
    return partial(torch.mm, torch.from_numpy(rows), torch.from_numpy(b), out=torch.from_numpy(out))
