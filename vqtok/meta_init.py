"""Networks built for their names and shapes alone:
to be filled from a file, or to be compared with one.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_SCALINGS = ("mul", "__mul__", "div", "__truediv__")


class _SkipRandomInit(TorchFunctionMode):
    """Skips normal draws and their scaling: on the meta device torch does both in Python.

    It imports sympy for the one and all of torch._dynamo for the other, 0.2 and 0.5 s.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        # the tensor's own, or that of torch.nn.init, which names its argument
        if func.__name__ == "normal_":
            return args[0] if args else (kwargs or {})["tensor"]
        if func.__name__ in _SCALINGS and isinstance(args[1], float):
            return args[0]
        return (torch.empty if func is torch.randn else func)(*args, **(kwargs or {}))


@contextmanager
def init_empty_weights() -> Iterator[None]:
    """Makes modules without memory or values (the meta device), whatever shapes a damaged config
    may ask for.
    """
    with torch.device("meta"), _SkipRandomInit():
        yield
