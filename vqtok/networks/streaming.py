"""Runs an encoder or decoder tile by tile on an image of any size in bounded memory; the result
equals one full pass.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqtok.networks.vqvae import (
    AnyDecoder,
    AnyEncoder,
    Decoder,
    Downsample,
    Encoder,
    ResidualBlock,
    Upsample,
)
from vqtok.threads import one_thread


@dataclass(frozen=True)
class Tiling:
    """Cuts a grid into parts that are worked on one after the other."""

    axis: int  # 2: into rows, 3: into columns
    tiles: tuple[slice, ...]  # of the grid, along the axis
    max_length: int  # length of the longest

    @classmethod
    def of(cls, h: int, w: int, f: int, pixels: int, n: int = 1) -> "Tiling":
        """Cuts n grids of h x w codes, f x f pixels each, into equal parts
        of about `pixels` in all.

        Into rows, which lie together in memory, unless the grid is wide and a few of its
        rows are too much already.
        """
        axis = 3 if w > h and n * w * f * f > 4 * pixels else 2
        length = h if axis == 2 else w
        most = -(-length // max(1, round(n * h * w * f * f / pixels)))
        return cls(
            axis, tuple(slice(i, min(length, i + most)) for i in range(0, length, most)), most
        )

    def slices(self, part: slice, scale: int = 1) -> tuple[slice, slice]:
        """Returns the rows and columns of a part."""
        part = slice(part.start * scale, part.stop * scale)
        return (part, slice(None)) if self.axis == 2 else (slice(None), part)


class StreamingConv2d:
    """Convolves features that come part by part along an axis, 2 (rows) or 3 (columns); its
    outputs, joined, equal those of one pass.

    It keeps as many rows as its kernel reaches back.
    """

    def __init__(self, layer: nn.Conv2d, axis: int) -> None:
        self.layer, self.axis = layer, axis
        self.kernel, self.stride = layer.kernel_size[axis - 2], layer.stride[axis - 2]
        self.padding = (int(layer.padding[0]), int(layer.padding[1]))
        self.edge = self.padding[axis - 2]
        self.buffer: Tensor | None = None
        self.whole = False

    def extend(self, x: Tensor, last: bool, silu: bool = False) -> Tensor:
        """Returns the next part, x or silu(x), with the rows that the kernel needs before and after
        it: the input of `convolve`.
        """
        self.whole = self.buffer is None and last  # a part that is all there is goes in as it is
        if self.whole:
            return F.silu(x) if silu else x
        return self._extended(x, last, silu)

    def convolve(self, x: Tensor) -> Tensor | None:
        """Returns the output rows that can be computed so far; None while there is none."""
        layer = self.layer
        # oneDNN sums a 1x1 kernel in an order that depends on the number of threads, and no other:
        # on one thread (0.2 ms a photo) an image has equal indices, alone or beside others
        with one_thread(layer.kernel_size == (1, 1)):
            return self._convolve(x, layer)

    def _convolve(self, x: Tensor, layer: nn.Conv2d) -> Tensor | None:
        if self.whole:
            return F.conv2d(x, layer.weight, layer.bias, layer.stride, self.padding)
        length = x.shape[self.axis]
        done = max(0, (length - self.kernel) // self.stride + 1)
        # a view would keep all of x
        self.buffer = x.narrow(self.axis, done * self.stride, length - done * self.stride).clone()
        padding = (0, self.padding[1]) if self.axis == 2 else (self.padding[0], 0)
        return F.conv2d(x, layer.weight, layer.bias, layer.stride, padding) if done else None

    def _extended(self, x: Tensor, last: bool, silu: bool) -> Tensor:
        """Joins the buffered rows (padding before the first part), x or silu(x), and the padding
        after the last part.
        """
        before = self.edge if self.buffer is None else self.buffer.shape[self.axis]
        shape, count = list(x.shape), x.shape[self.axis]
        shape[self.axis] = before + count + last * self.edge
        extended = torch.empty(
            shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last
        )
        if self.buffer is None:
            extended.narrow(self.axis, 0, before).zero_()
        else:
            extended.narrow(self.axis, 0, before).copy_(self.buffer)
        if silu:  # written where it belongs: a pass over the features less
            torch.ops.aten.silu.out(x, out=extended.narrow(self.axis, before, count))
        else:
            extended.narrow(self.axis, before, count).copy_(x)
        if last:
            extended.narrow(self.axis, before + count, self.edge).zero_()
        return extended


class StreamingLayer:
    """Runs a layer of an encoder or decoder on features that come part by part, without gradients;
    it works in place where it can.
    """

    def __init__(self, layer: nn.Module, axis: int) -> None:
        self.layer, self.axis = layer, axis
        convolutions = (
            [layer.first, layer.second]
            if isinstance(layer, ResidualBlock)
            else [layer]
            if isinstance(layer, nn.Conv2d)
            else []
        )
        self.convolutions = [StreamingConv2d(convolution, axis) for convolution in convolutions]
        self.around = isinstance(layer, ResidualBlock | Downsample | Upsample)
        self.buffer: Tensor | None = None

    def push(self, x: Tensor, last: bool) -> Tensor | None:
        if isinstance(self.layer, nn.SiLU):
            return F.silu(x, inplace=True)
        if not self.convolutions:
            return self.layer(x)
        y: Tensor | None = x
        for convolution in self.convolutions:
            # frees the y before: 14 bytes a pixel
            y = convolution.extend(y, last, silu=isinstance(self.layer, ResidualBlock))
            y = convolution.convolve(y)
            if y is None:
                break
        return self._with_shortcut(y, x) if self.around else y

    def _with_shortcut(self, y: Tensor | None, x: Tensor) -> Tensor | None:
        """Adds the shortcut to the output of the convolutions: the buffered rows first, then the
        start of x. The rest of x is buffered.
        """
        if y is None:
            self.buffer = self._joined(x)
            return None
        # 2 where the resolution halves; every other layer keeps it
        stride = self.convolutions[0].stride
        length, before = (
            y.shape[self.axis],
            0 if self.buffer is None else self.buffer.shape[self.axis],
        )
        if before % stride or before > length * stride:
            x, self.buffer, before = self._joined(x), None, 0
        if self.buffer is not None:
            self._add(y, 0, self.buffer)
        used = length * stride - before
        if used:
            self._add(y, before // stride, x.narrow(self.axis, 0, used))
        rest = x.shape[self.axis] - used
        self.buffer = x.narrow(self.axis, used, rest).clone() if rest else None
        return y

    def _joined(self, x: Tensor) -> Tensor:
        return x if self.buffer is None else torch.cat([self.buffer, x], self.axis)

    def _add(self, y: Tensor, start: int, x: Tensor) -> None:
        halving = isinstance(self.layer, Downsample)
        part = y.narrow(self.axis, start, x.shape[self.axis] // (2 if halving else 1))
        if isinstance(self.layer, Downsample | Upsample):
            self.layer.add_shortcut(part, x)
        else:
            part.add_(x)


def stream(
    network: AnyEncoder | AnyDecoder, parts: Iterable[Tensor], axis: int, max_length: int
) -> Iterator[Tensor]:
    """Runs a network on an input that comes in parts along an axis, 2 (rows) or 3 (columns); yields
    its output in parts along the same axis.

    Nothing is computed twice: each layer buffers the few rows that its next part needs. The joined
    outputs equal those of one pass, up to float rounding. A part has at most `max_length` positions
    of the input along the axis; later layers, which get the end of the input all at once, cut
    theirs to the same size. A network that sees the whole image gets it in one part.
    """
    if not isinstance(network, Encoder | Decoder):
        yield from map(network, parts)
        return
    unit, steps = 1.0, []
    for layer in network:
        steps.append((StreamingLayer(layer, axis), round(max_length / unit)))
        unit *= _scale(layer, axis)
    waiting: Tensor | None = None
    for part in parts:
        if waiting is not None:
            yield from _run_layers(steps, waiting, False)
        waiting = part
    if waiting is not None:
        yield from _run_layers(steps, waiting, True)


def _scale(layer: nn.Module, axis: int) -> float:
    """Returns a layer's stride along an axis: input positions for each output position."""
    if isinstance(layer, nn.PixelUnshuffle):
        return layer.downscale_factor
    if isinstance(layer, nn.PixelShuffle):
        return 1 / layer.upscale_factor
    return layer.stride[axis - 2] if isinstance(layer, nn.Conv2d) else 1


def _run_layers(steps: list[tuple[StreamingLayer, int]], x: Tensor, last: bool) -> Iterator[Tensor]:
    """Runs one part through the layers that are left."""
    for i, (step, most) in enumerate(steps):
        # the limit is for the memory's sake: parts that are a little larger do not hurt
        if x.shape[step.axis] > 1.5 * most:
            pieces = x.chunk(-(-x.shape[step.axis] // most), step.axis)
            for k, piece in enumerate(pieces):
                yield from _run_layers(steps[i:], piece, last and k == len(pieces) - 1)
            return
        y = step.push(x, last)
        if y is None:
            return
        x = y
    yield x
