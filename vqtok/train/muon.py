"""Implements Muon: momentum whose matrices are made orthogonal before each step (Jordan et al.
2024), and AdamW for all else.

A step moves a convolution's weights along all directions of their matrix equally, not mainly along
the few that the gradient is largest in. The photo tokenizer of 250 steps has a lower LPIPS at every
rate but the lowest than with AdamW (benchmarks/README.md, adamw).
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from vqtok.train.runtime import foreach, step_if, sync_free

MOMENTUM = 0.95
SMALLEST = 32  # sides of a matrix: narrower ones, at a network's ends, are AdamW's
# of the Newton-Schulz step that brings singular values near 1 in five rounds (Jordan)
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ROUNDS = 5
PRECISION = torch.bfloat16  # of its products: enough, as the steps need only be roughly orthogonal
# root mean square of AdamW's steps: with it both take the same learning rate (Liu et
# al. 2025, arXiv 2502.16982)
ADAMW_SIZE = 0.2


class Muon(torch.optim.Optimizer):
    """Steps the weights of convolutions by Muon and all other parameters by AdamW, at the same
    learning rate.
    """

    takes_ok = True  # `runtime.step_if`

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float | Tensor, **adamw: Any
    ) -> None:
        """Takes the options of torch.optim.AdamW as `adamw`."""
        parameters = list(parameters)
        matrices = [
            p
            for p in parameters
            if p.dim() == 4 and min(len(p), p[0].numel()) >= SMALLEST and p.shape[2] > 1
        ]
        others = [p for p in parameters if not any(p is matrix for matrix in matrices)]
        super().__init__(matrices or others[:1], {"lr": lr, **adamw})
        self.matrices = matrices
        self._groups: list[tuple[list[nn.Parameter], Tensor]] = []
        self._views: list[tuple[nn.Parameter, Tensor]] = []
        self.adamw = torch.optim.AdamW(others, lr, **adamw)
        # one state and one list of groups: code that saves or schedules need not know
        self.adamw.state = self.state
        self.param_groups = [*(self.param_groups if matrices else []), *self.adamw.param_groups]

    @torch.no_grad()
    def step(  # type: ignore[override]
        self, closure: None = None, ok: Tensor | None = None
    ) -> None:
        """Steps all parameters; where `ok` (bool, scalar) is false, every parameter and momentum
        stays as it is.
        """
        step_if(self.adamw, ok)
        if not self.matrices:
            return
        if sync_free(self.matrices[0].device):
            self._step_in_groups(ok)
            return
        for weight in self.matrices:
            if weight.grad is None:
                continue
            if not self.state[weight]:
                self.state[weight]["momentum"] = torch.zeros_like(weight)
            momentum = self.state[weight]["momentum"]
            momentum.lerp_(weight.grad, 1 - MOMENTUM)
            # (out, in*k*k), Nesterov's momentum
            direction = torch.lerp(weight.grad, momentum, MOMENTUM).flatten(1)
            scale = _scale(direction) * self.param_groups[0]["lr"]
            weight.add_(orthogonal(direction).view_as(weight), alpha=-scale)

    def _step_in_groups(self, ok: Tensor | None) -> None:
        """Steps all matrices, those of one shape in one product: 10 products in place of 37 for the
        photo tokenizer.

        A GPU takes as long for one small matrix as for four.
        On a CPU it would be 1.2 times as slow as one by one.
        """
        for weights, momenta in self._grouped():
            gradients = torch.stack(
                [w.grad.permute(0, 2, 3, 1) for w in weights if w.grad is not None]
            )  # (n, out, k, k, in)
            if ok is not None:
                # 0 times NaN is NaN
                gradients = torch.where(ok, gradients, torch.zeros_like(gradients))
                momenta.lerp_(gradients, (1 - MOMENTUM) * ok.float())
            else:
                momenta.lerp_(gradients, 1 - MOMENTUM)
            direction = torch.lerp(gradients, momenta, MOMENTUM).flatten(2)  # (n, out, k*k*in)
            rate = _scale(direction[0]) * self.param_groups[0]["lr"]
            steps = (
                orthogonal(direction)
                .mul_(-rate if ok is None else -rate * ok.float())
                .view_as(momenta)
            )
            foreach._foreach_add_(weights, list(steps.permute(0, 1, 4, 2, 3).unbind()))

    def _grouped(self) -> list[tuple[list[nn.Parameter], Tensor]]:
        """Groups the matrices by shape, each group with its momenta (n, out, k, k, in), of which
        the state holds views.
        """
        if not self._groups or any(
            self.state[w].get("momentum") is not view for w, view in self._views
        ):
            by_shape: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for weight in self.matrices:
                by_shape[weight.shape].append(weight)
            self._groups, self._views = [], []
            for weights in by_shape.values():
                known = [self.state[w].get("momentum", torch.zeros_like(w)) for w in weights]
                momenta = torch.stack([m.permute(0, 2, 3, 1) for m in known])
                views = momenta.permute(0, 1, 4, 2, 3).unbind()
                self._groups.append((weights, momenta))
                self._views += list(zip(weights, views, strict=True))
            for weight, view in self._views:
                self.state[weight]["momentum"] = view
        return self._groups


def _scale(matrix: Tensor) -> float:
    """Returns the factor that makes a step of an orthogonal matrix (out, in*k*k) as large as one of
    AdamW.
    """
    return ADAMW_SIZE * max(matrix.shape) ** 0.5


def orthogonal(matrix: Tensor) -> Tensor:
    """Matrices (..., n, m) with their singular values near 1, in float32:
    U V^T for U S V^T, roughly.
    """
    a, b, c = COEFFICIENTS
    x = matrix.to(PRECISION)
    x = x / (torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True) + 1e-7)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    product = torch.addmm if x.dim() == 2 else torch.baddbmm
    for _ in range(ROUNDS):
        gram = x @ x.mT
        x = product(x, product(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).float()
