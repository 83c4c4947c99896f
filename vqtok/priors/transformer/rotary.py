"""Rotary positions in two dimensions (Su et al. 2021, arXiv 2104.09864, eq. 34):
attention sees how far apart two places are.

Component m of a head and component m + D/2 are a pair, a point of the plane that is turned by its
place's angle; the first half of the pairs are turned by the row, the others by the column. No angle
is learned and none belongs to a size: every grid has them.
"""

from typing import Any

import torch
from torch import Tensor

# the slowest pair turns once in about 2 pi * 100 places:
# grids are 8 to 64 places wide, where text takes 10,000
BASE = 100.0


def places(h: int, w: int) -> tuple[Tensor, Tensor]:
    """(row, column) of what each of the h*w tokens asks for, and of the index that it carries;
    both int64 (h*w, 2).

    A token carries the index before the one it asks for: to the left or, at the left edge, the last
    of the row above. With both places told apart the index to the left is always (0, 1) away and
    the one above (1, 0), also across the edge. The first token carries none and stands where that
    would be, left of the first place.

    Nothing else tells a token where it is. That is enough: of one fixed 8x8 grid of 16 codes with
    10 % noise, where the place alone tells the code, four blocks of width 64 learned all there is
    (0.81 bits an index) in 200 steps of 16.
    """
    asked = torch.stack(
        torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij"), dim=-1
    ).view(-1, 2)
    return asked, torch.cat([torch.tensor([[0, -1]]), asked[:-1]])


def angles(places: Tensor, size: int) -> Tensor:
    """(..., size/2) float32 angles of places (..., 2) for heads of that many
    components, a multiple of 4.
    """
    # (size/4,), from 1 radian a place down
    frequencies = BASE ** -(torch.arange(size // 4) / (size // 4))
    return (places[..., None].float() * frequencies).flatten(-2)


def turns(h: int, w: int, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines (h*w, 2, 1, size/2) for `rotate`:
    queries by the place that is asked for, keys by the place of the index.
    """
    turned = angles(torch.stack(places(h, w), dim=1), size)[:, :, None].to(device)
    return turned.cos(), turned.sin()


def rotate(qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns the queries and keys of (N, T, 3, heads, D); the values stay."""
    return _Rotate.apply(qkv, cos.to(qkv.dtype), sin.to(qkv.dtype))  # type: ignore[no-any-return]


class _Rotate(torch.autograd.Function):
    """Written out: nothing is kept for the gradient, which is turned
    back, and no half is copied.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(qkv, cos, sin, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turned(gradients[0], cos, sin, -1), None, None


def _turned(qkv: Tensor, cos: Tensor, sin: Tensor, direction: int) -> Tensor:
    result = torch.empty_like(qkv)
    (a, b), (to_a, to_b) = qkv[:, :, :2].chunk(2, dim=-1), result[:, :, :2].chunk(2, dim=-1)
    torch.addcmul(a * cos, b, sin, value=-direction, out=to_a)
    torch.addcmul(b * cos, a, sin, value=direction, out=to_b)
    result[:, :, 2] = qkv[:, :, 2]
    return result
