"""Keeps a moving average of a network's weights: the model that is released, smoother than the
weights of any one step.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from vqtok.train.runtime import DeviceScalar, foreach


class WeightAverage:
    """Averages all float tensors of a network except the training state of its quantizer."""

    def __init__(self, network: nn.Module, decay: float, frozen: tuple[str, ...] = ()) -> None:
        """Starts the average. Tensors whose names begin with one of `frozen` never change, and are
        left out: an average of zeros forgets their signs, and a fingerprint sees those.
        """
        self.decay = decay
        state = network.state_dict(keep_vars=True).items()
        self._live = {
            name: value.detach()
            for name, value in state
            if value.is_floating_point() and ".average." not in name and not name.startswith(frozen)
        }
        self._mean = {name: value.clone() for name, value in self._live.items()}
        self._rate = DeviceScalar(next(iter(self._live.values())).device)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Returns the averages by their names in a state file."""
        return {f"ema.{name}": value for name, value in self._mean.items()}

    def reset(self) -> None:
        """Sets the averages to the present weights."""
        for name, value in self._live.items():
            self._mean[name].copy_(value)

    def schedule(self, step: int) -> None:
        """Sets the rate of the update after `step` steps. At first it is above 1 - `decay`, or the
        first weights would stay in the average for long.
        """
        self._rate.set(1 - min(self.decay, (1 + step) / (10 + step)))

    def update(self, ok: Tensor | None = None) -> None:
        """Moves the averages toward the weights; `ok` false leaves them as they are."""
        means, live, rate = list(self._mean.values()), list(self._live.values()), self._rate.value
        if not isinstance(rate, Tensor):
            foreach._foreach_lerp_(means, live, rate)
            return
        # lerp with a tensor's rate would be a kernel for each weight.
        steps = foreach._foreach_sub(live, means)
        foreach._foreach_mul_(steps, rate if ok is None else rate * ok)
        foreach._foreach_add_(means, steps)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Gives the network the averaged weights inside the block."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, value in self._live.items():
            kept = value.clone()
            value.copy_(self._mean[name])
            self._mean[name].copy_(kept)
