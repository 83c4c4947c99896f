"""Runs ONNX graphs on the CPU by onnxruntime, where that is installed."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np

_NAME = "onnxruntime"


def is_installed() -> bool:
    """Whether onnxruntime is there to be imported; it is not imported yet."""
    return find_spec(_NAME) is not None


def start() -> str:
    """Imports onnxruntime and returns its version. ImportError where that fails."""
    return import_module(_NAME).__version__


class Session:
    """A graph that is ready to run."""

    def __init__(self, graph: bytes, arrays: Mapping[str, np.ndarray]) -> None:
        """Prepares the graph of a file's bytes, and of the weights that it names as being apart.

        RuntimeError where onnxruntime refuses it.
        """
        runtime: Any = import_module(_NAME)
        options = runtime.SessionOptions()
        options.log_severity_level = 3  # errors alone
        options.intra_op_num_threads = _threads()
        options.inter_op_num_threads = 1
        # threads sleep while they wait for each other: see `vqtok.__main__`
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # it takes memory for features as it needs it: its own store of memory is new, and filled
        # with zeros, at each start
        options.enable_cpu_mem_arena = False
        self._arrays = arrays  # onnxruntime keeps no copy
        if arrays:
            values = map(runtime.OrtValue.ortvalue_from_numpy, arrays.values())
            options.add_external_initializers(list(arrays), list(values))
        self._session = runtime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def run(self, name: str, value: np.ndarray) -> np.ndarray:
        """Computes the one output for the one input, which has that name. RuntimeError where
        onnxruntime fails.
        """
        with _named_errors():
            (output,) = self._session.run(None, {name: value})
        return output


@contextmanager
def _named_errors() -> Iterator[None]:
    """Raises RuntimeError for onnxruntime's errors: classes of its own, under Exception itself."""
    try:
        yield
    except Exception as error:
        raise RuntimeError(f"onnxruntime: {error}") from error


def _threads() -> int:
    """How many threads to use: OMP_NUM_THREADS, as PyTorch has it, else all cores that this process
    may run on.
    """
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if first.isascii() and first.isdecimal() and int(first[:6]) > 0:
        return int(first[:6])
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1
