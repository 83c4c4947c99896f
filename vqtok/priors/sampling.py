"""New index grids from a prior, and known ones completed; every position is computed once, from cached activations.

The vertical stack needs only the rows above, so it moves on a row at a time and keeps kernel//2 + 1 rows of each layer. What it
tells the horizontal stack is computed for the whole row at once. The horizontal stack then goes from left to right. At batch 1
the overhead of calls would rule, not arithmetic: hence five calls a layer, on 2-D views that are made once, and one thread.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqtok.errors import UsageError
from vqtok.priors.pixelcnn import GatedLayer, PixelCNN, gate

FEW_GRIDS = 64
Progress = Callable[[int, int], None]


def sample(
    prior: PixelCNN,
    n: int,
    h: int,
    w: int,
    *,
    labels: Tensor | Sequence[int] | int | None = None,
    seed: int | torch.Generator = 0,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    known: Tensor | None = None,
    levels: int | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Draws n grids of h x w: int64 (n, L, h, w), on the prior's device, or of their first `levels` levels only.

    Labels are class numbers, -1 for none, or one number for all. Temperature 0 takes the likeliest index; `top_k` keeps the k
    likeliest; `top_p` keeps the likeliest that together reach that probability (after `top_k`). `known` (n, L, h, w) holds
    indices to keep, and -1 where they are to be invented. `progress` gets rows done and in all. A generator is asked for a seed.

    Picture i has random numbers of its own, from (seed, i). On a CPU the same call gives the same grids; another n gives the same
    picture i, unless a draw lies within rounding (about 1e-6) of the border between two indices. Raises UsageError.
    """
    L, K = prior.config.levels if levels is None else levels, prior.config.codebook_size
    device = prior.embedding.weight.device
    _check_options(n, h, w, temperature, top_k, top_p)
    if not 1 <= L <= prior.config.levels:
        raise UsageError(f"{L} levels cannot be drawn: the prior has {prior.config.levels}", f"choose 1 to {prior.config.levels}")
    known = torch.full((n, L, h, w), -1) if known is None else _check_known(known.cpu(), (n, L, h, w), K)
    uniform = _uniform(seed, n, L * h * w).view(n, L, h, w)
    uniform = uniform.to(device, torch.float32 if device.type == "mps" else torch.float64)      # MPS has no float64
    rows = prior.label_rows(_check_labels(labels, n, len(prior.config.labels)), n, device)
    draw = partial(choose, temperature=temperature, top_k=top_k, top_p=top_p)
    with torch.inference_mode(), _full_precision(device), _threads(n):
        indices = known.clamp(min=0).to(device)
        for level in range(L):
            cache = Cache(prior, level, n, w, rows, None if prior.context is None else prior.context(indices)[:, level])
            for i in range(h):
                cache.next_row(indices[:, level, i - 1] if i else None)
                _fill_row(cache, indices[:, level, i], known[:, level, i] < 0, uniform[:, level, i], draw)
                if progress is not None:
                    progress(level * h + i + 1, L * h)
    return indices.clone()      # outside inference mode: an ordinary tensor


def _fill_row(cache: "Cache", row: Tensor, unknown: Tensor, uniform: Tensor, draw: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Draws the unknown indices of `row`, in place; row, unknown (on the CPU) and uniform are (n, w)."""
    wanted = unknown.any(0).tolist()                            # by column
    last = max((j for j, want in enumerate(wanted) if want), default=-1)
    unknown = unknown.to(row.device)
    for j in range(last + 1):       # nothing needs the horizontal stack to the right of the last
        features = cache.next_column(row[:, j - 1] if j else None)
        if wanted[j]:
            drawn = draw(cache.logits(features), uniform[:, j])
            row[:, j] = torch.where(unknown[:, j], drawn, row[:, j])


def choose(
    logits: Tensor, uniform: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Tensor:
    """One index (n,) for each row of logits (n, K): where its uniform number (n,) falls in the cumulative distribution."""
    if temperature == 0 or top_k == 1:
        return logits.argmax(1)
    logits = (logits - logits.amax(1, keepdim=True)).to(uniform.dtype) / temperature     # the largest is 0: no overflow
    order = None
    if top_k is not None and top_k < logits.shape[1]:
        logits, order = logits.topk(top_k, dim=1)
    elif top_p is not None and top_p < 1:
        logits, order = logits.sort(dim=1, descending=True, stable=True)
    odds = logits.softmax(1)
    if top_p is not None and top_p < 1:
        odds = odds * (odds.cumsum(1) - odds < top_p)       # what stands before falls short of top_p: the first always stays
    reached = odds.cumsum(1)
    below_one = uniform[:, None].clamp(max=1 - torch.finfo(uniform.dtype).eps)     # 1 would reach past the last with odds
    place = torch.searchsorted(reached, below_one * reached[:, -1:], right=True)
    return (place if order is None else order.gather(1, place)).squeeze(1)


class CachedLayer:
    """One layer's weights as matrices, and its activations in the rows and columns that are still needed."""

    def __init__(self, layer: GatedLayer, n: int, w: int, rows: Tensor | None, context: Tensor | None) -> None:
        C, self.reach = layer.out.in_channels, layer.reach
        assert layer.vertical.bias is not None
        assert layer.horizontal.bias is not None
        self.vertical, self.vertical_bias = _matrix(layer.vertical), layer.vertical.bias
        self.horizontal, self.link, self.out = _matrix(layer.horizontal), _matrix(layer.link), _matrix(layer.out)
        bias = torch.zeros_like(self.horizontal[0]).repeat(2)                           # (4C,)
        self.bias = bias if layer.label is None or rows is None else layer.label(rows)[:, None]      # (4C,) or (n, 1, 4C)
        self.bias_x = layer.horizontal.bias
        self.context = None if layer.context is None or context is None else _matrix(layer.context)
        zeros = self.horizontal.new_zeros
        self.above = zeros(n, self.reach + 1, w + 2 * self.reach, C)       # the last rows of v, the newest last
        self.row = zeros(n, w, 2 * C)                                      # what the horizontal stack gets from above, and biases
        self.left = zeros(n, (w + self.reach) * C)                         # x in this row; the first `reach` columns stay zero
        self.gated = zeros(n, 2 * C)
        self.tanh_part = self.gated[:, :C]
        self.from_above = list(self.row.unbind(1))
        self.windows = [self.left[:, j * C : (j + self.reach + 1) * C] for j in range(w)]
        self.slots = [self.left[:, (j + self.reach) * C : (j + self.reach + 1) * C] for j in range(w)]

    def next_row(self, v: Tensor, context: Tensor | None) -> Tensor:
        """Takes the next row of v (n, w, C) in, prepares `row`, and returns the next layer's v."""
        n, w, C = v.shape
        r = self.reach
        self.above = torch.cat([self.above[:, 1:], F.pad(v, (0, 0, r, r))[:, None]], dim=1)
        patches = self.above.unfold(2, 2 * r + 1, 1)                                    # (n, r+1, w, C, 2r+1)
        patches = patches.permute(0, 2, 1, 4, 3).reshape(n * w, -1)                     # (n*w, (r+1)*(2r+1)*C)
        down = torch.addmm(self.vertical_bias, patches, self.vertical).view(n, w, 2 * C)
        bias = self.bias
        if self.context is not None and context is not None:
            bias = bias + context @ self.context                                        # (n, w, 4C)
        down = down + bias[..., : 2 * C]
        self.row.copy_(down @ self.link + (self.bias_x + bias[..., 2 * C :]))
        return v + gate(down.view(n * w, 2 * C)).view(n, w, C)

    def next_column(self, j: int, state: Tensor, x: Tensor) -> None:
        """Adds the residual and skip of column j to `state` (n, 2C), of which `x` is a view of the first half."""
        self.slots[j].copy_(x)
        torch.addmm(self.from_above[j], self.windows[j], self.horizontal, out=self.gated)
        self.tanh_part.tanh_()
        state.addmm_(F.glu(self.gated, 1), self.out)


class Cache:
    """The prior part-way through one level of n grids."""

    def __init__(self, prior: PixelCNN, level: int, n: int, w: int, rows: Tensor | None, context: Tensor | None) -> None:
        C, K = prior.config.width, prior.config.codebook_size
        self.embedding = prior.embedding.weight[level * K : (level + 1) * K]
        self.context = None if context is None else context.permute(2, 0, 3, 1)         # (h, n, w, C)
        self.layers = [CachedLayer(layer, n, w, rows, context) for layer in prior.layers]    # type: ignore[arg-type]
        self.head, self.readout = prior.head, prior.readout[level]
        self.start = self.embedding.new_zeros(n, w, C)
        self.state = self.embedding.new_zeros(n, 2 * C)     # x and the sum of the skips
        self.x, self.skips = self.state[:, :C], self.state[:, C:]
        self.i = self.j = -1

    def next_row(self, above: Tensor | None) -> None:
        """Moves on to the next row; `above` (n, w) are the indices of the row before it, None at the top."""
        self.i, self.j = self.i + 1, -1
        v = self.start if above is None else F.embedding(above, self.embedding)         # (n, w, C)
        context = None if self.context is None else self.context[self.i]
        for layer in self.layers:
            v = layer.next_row(v, context)

    def next_column(self, left: Tensor | None) -> Tensor:
        """Moves on to the next column; `left` (n,) are the indices of the column before it. Features (n, C), a view."""
        self.j += 1
        self.state.zero_()
        if left is not None:
            self.x.copy_(F.embedding(left, self.embedding))
        for layer in self.layers:
            layer.next_column(self.j, self.state, self.x)
        return self.skips

    def logits(self, features: Tensor) -> Tensor:
        """(n, C) -> (n, K)."""
        return self.readout(F.relu(self.head(F.relu(features))))


def _matrix(conv: nn.Conv2d) -> Tensor:
    """A convolution's weights as (rows * columns * inputs, outputs)."""
    return conv.weight.permute(2, 3, 1, 0).flatten(0, 2).contiguous()


def _full_precision(device: torch.device) -> AbstractContextManager:
    """Autocast off: half of the calls below would leave it, the other half not."""
    return torch.autocast(device.type, enabled=False) if device.type in ("cpu", "cuda") else nullcontext()


@contextmanager
def _threads(n: int) -> Iterator[None]:
    """One thread for few grids: the products are then too small to share.

    Two threads on two busy cores waited for each other at every call: 16 ms a position at n = 1, where one thread took 1.2.
    """
    before = torch.get_num_threads()
    if n < FEW_GRIDS:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _uniform(seed: int | torch.Generator, n: int, count: int) -> Tensor:
    """(n, count) numbers in [0, 1), on the CPU: row i depends on the seed and i alone."""
    if isinstance(seed, torch.Generator):
        seed = int(torch.randint(2**62, (), generator=seed, device=seed.device))
    rows = []
    for i in range(n):
        # Hashed, because the CPU generator looks at 32 bits, and seed + i would give neighboring seeds each other's pictures.
        own = int.from_bytes(hashlib.sha256(f"{seed}/{i}".encode()).digest()[:4], "little")
        rows.append(torch.rand(count, generator=torch.Generator().manual_seed(own), dtype=torch.float64))
    return torch.stack(rows)


def _check_options(n: int, h: int, w: int, temperature: float, top_k: int | None, top_p: float | None) -> None:
    if min(n, h, w) < 1:
        raise UsageError(f"{n} grids of {h}x{w} cannot be drawn", "ask for at least one, of at least 1x1")
    if not 0 <= temperature < math.inf:
        raise UsageError(f"temperature is {temperature}", "choose 0 (the likeliest) or more; 1 samples what was learned")
    if top_k is not None and top_k < 1:
        raise UsageError(f"top-k is {top_k}", "choose 1 or more, or leave it out")
    if top_p is not None and not 0 < top_p <= 1:
        raise UsageError(f"top-p is {top_p}", "choose a value above 0 and up to 1, or leave it out")


def _check_labels(labels: Tensor | Sequence[int] | int | None, n: int, classes: int) -> Tensor | None:
    if labels is None:
        return None
    wanted = torch.full((n,), labels) if isinstance(labels, int) else torch.as_tensor(labels)
    if wanted.shape != (n,):
        raise UsageError(f"{wanted.numel()} labels for {n} grids", "give one label, or one for each grid")
    low, high = int(wanted.min()), int(wanted.max())
    if high >= 0 and not classes:
        raise UsageError("this prior was trained without labels", "leave the label out")
    if low < -1 or high >= classes:
        wrong = low if low < -1 else high
        raise UsageError(f"label {wrong} is not one of the prior's {classes}", f"choose from 0 to {classes - 1}")
    return wanted.long()


def _check_known(known: Tensor, shape: tuple[int, ...], K: int) -> Tensor:
    if known.shape != shape:
        raise UsageError(f"known indices are {tuple(known.shape)}, the grids {shape}", "give (n, L, h, w), -1 where unknown")
    if int(known.min()) < -1 or int(known.max()) >= K:
        raise UsageError(f"known indices lie outside [-1, {K - 1}]", "give indices of this prior's codebook, -1 where unknown")
    return known.long()
