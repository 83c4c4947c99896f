"""Networks built for their names and shapes alone: to be filled from a file, or to be compared with one."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class _Undrawn(TorchFunctionMode):
    """No normal draws: on the meta device torch makes them in Python and imports sympy or all of torch._dynamo for that (0.2 to 0.5 s)."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.Tensor.normal_:
            return args[0]
        return (torch.empty if func is torch.randn else func)(*args, **(kwargs or {}))


@contextmanager
def outline() -> Iterator[None]:
    """Modules made inside have neither memory nor values (the meta device), whatever shapes a damaged config may ask for."""
    with torch.device("meta"), _Undrawn():
        yield
