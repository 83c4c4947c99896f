"""Encoder, decoder, and the VQ-VAE around a quantizer (van den Oord et al. 2017, arXiv 1711.00937).

No normalization over space and no attention: each output depends on a bounded neighborhood, so that a picture of any size can be
encoded whole or in tiles with the same result.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqtok import losses, quantizers
from vqtok.config import TokenizerConfig
from vqtok.quantizers import Quantized


@dataclass(frozen=True)
class Output:
    """One training step's view of a batch."""

    reconstruction: Tensor      # (B, C, H, W) in [-1, 1]
    indices: Tensor             # (B, L, h, w)
    loss: Tensor                # scalar: reconstruction + codebook + commitment


def to_float(pictures: Tensor) -> Tensor:
    """uint8 (B, C, H, W) -> float in [-1, 1]."""
    return torch.div(pictures, 127.5).sub_(1)


def to_uint8(pictures: Tensor) -> Tensor:
    """Float in [-1, 1] -> uint8, rounded to the nearest gray level."""
    return pictures.float().clamp(-1, 1).add_(1).mul_(127.5).round_().to(torch.uint8)


class ResidualBlock(nn.Module):
    """x + conv(silu(conv(silu(x)))), (B, C, H, W) -> (B, C, H, W); it starts as the identity, its last convolution being zero."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)        # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.silu(self.first(F.silu(x))))


def _widths(config: TokenizerConfig) -> list[int]:
    """Channels of each stage, finest (1/fold of the picture) to coarsest (1/f)."""
    stages = int(math.log2(config.downsample // config.fold)) + 1
    return [config.width * 2**stage for stage in range(stages)]


class Halve(nn.Conv2d):
    """Half the resolution, (B, C, H, W) -> (B, D, H/2, W/2), by a 4x4 convolution beside a path without weights.

    That path folds 2x2 positions into channels and averages neighboring ones. A deep autoencoder learns far faster with it (Chen
    et al. 2024, arXiv 2410.10733, section 3.1): the f16 photo tokenizer gains 1 dB with one level and 3 dB with eight in 250 steps
    (benchmarks/README.md, row noshortcut).
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 4, stride=2, padding=1)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + self.shortcut(input)

    def shortcut(self, input: Tensor) -> Tensor:
        B, _, H, W = input.shape
        return F.pixel_unshuffle(input, 2).reshape(B, self.out_channels, -1, H // 2, W // 2).mean(2)

    def add_shortcut(self, output: Tensor, input: Tensor) -> None:
        """In place, and the same numbers: the channels of a place's two rows alternate, each the mean of two neighbors in its row."""
        means = (input[..., 0::2] + input[..., 1::2]).mul_(0.5)     # (B, C, H, W/2)
        for row in range(2):
            output[:, row::2].add_(means[:, :, row::2])


class Widen(nn.Conv2d):
    """Channels for twice the resolution, (B, C, h, w) -> (B, 4*D, h, w), by a 3x3 convolution beside repeated channels.

    The counterpart of `Halve`; PixelShuffle follows it.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, 4 * outputs, 3, padding=1)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + self.shortcut(input)

    def shortcut(self, input: Tensor) -> Tensor:
        return input.repeat_interleave(self.out_channels // self.in_channels, 1)

    def add_shortcut(self, output: Tensor, input: Tensor) -> None:
        """In place, and the same numbers."""
        count = self.out_channels // self.in_channels
        for i in range(count):
            output[:, i::count].add_(input)


class Encoder(nn.Sequential):
    """Pictures (B, C, H, W) in [-1, 1] -> vectors (B, D, H/f, W/f).

    Folds `fold` x `fold` pixels into channels first: most of the cost of a tokenizer lies at full resolution.
    """

    def __init__(self, config: TokenizerConfig) -> None:
        widths = _widths(config)
        layers: list[nn.Module] = [
            nn.PixelUnshuffle(config.fold),
            nn.Conv2d(config.channels * config.fold**2, widths[0], 3, padding=1),
        ]
        for stage, width in enumerate(widths):
            if stage:
                finer = widths[stage - 1]
                layers.append(Halve(finer, width) if config.shortcut else nn.Conv2d(finer, width, 4, stride=2, padding=1))
            layers += [ResidualBlock(width) for _ in range(config.encoder_blocks)]
        super().__init__(*layers, nn.SiLU(), nn.Conv2d(widths[-1], config.code_dim, 1))


class Decoder(nn.Sequential):
    """Vectors (B, D, h, w) -> what the likelihood needs, (B, C, h*f, w*f)."""

    def __init__(self, config: TokenizerConfig) -> None:
        widths = _widths(config)
        layers: list[nn.Module] = [nn.Conv2d(config.code_dim, widths[-1], 3, padding=1)]
        for stage in reversed(range(len(widths))):
            layers += [ResidualBlock(widths[stage]) for _ in range(config.decoder_blocks)]
            if stage:
                finer = widths[stage - 1]
                widen = Widen(widths[stage], finer) if config.shortcut else nn.Conv2d(widths[stage], 4 * finer, 3, padding=1)
                layers += [widen, nn.PixelShuffle(2)]
        last = nn.Conv2d(widths[0], config.channels * config.fold**2, 3, padding=1)
        super().__init__(*layers, nn.SiLU(), last, nn.PixelShuffle(config.fold))


class _Sliding:
    """A convolution over features that come part by part along an axis, 2 (rows) or 3 (columns): what it gives is, put together,
    what it gives at once. It keeps as many rows as its kernel reaches back."""

    def __init__(self, layer: nn.Conv2d, axis: int) -> None:
        self.layer, self.axis = layer, axis
        self.kernel, self.stride = layer.kernel_size[axis - 2], layer.stride[axis - 2]
        self.padding = (int(layer.padding[0]), int(layer.padding[1]))
        self.edge = self.padding[axis - 2]
        self.held: Tensor | None = None
        self.whole = False

    def take(self, x: Tensor, last: bool, silu: bool = False) -> Tensor:
        """What `convolve` needs: x or silu(x), the next part, with what the kernel needs before and after it."""
        self.whole = self.held is None and last         # a part that is all there is goes in as it is
        if self.whole:
            return F.silu(x) if silu else x
        return self._extended(x, last, silu)

    def convolve(self, x: Tensor) -> Tensor | None:
        """The output that the part makes possible; None as long as there is none."""
        layer = self.layer
        if self.whole:
            return F.conv2d(x, layer.weight, layer.bias, layer.stride, self.padding)
        length = x.shape[self.axis]
        done = max(0, (length - self.kernel) // self.stride + 1)
        self.held = x.narrow(self.axis, done * self.stride, length - done * self.stride).clone()      # a view would keep all of x
        padding = (0, self.padding[1]) if self.axis == 2 else (self.padding[0], 0)
        return F.conv2d(x, layer.weight, layer.bias, layer.stride, padding) if done else None

    def _extended(self, x: Tensor, last: bool, silu: bool) -> Tensor:
        """x or silu(x) behind what is held of the part before, or the padding, and before the padding at the end."""
        before = self.edge if self.held is None else self.held.shape[self.axis]
        shape, count = list(x.shape), x.shape[self.axis]
        shape[self.axis] = before + count + last * self.edge
        extended = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        if self.held is None:
            extended.narrow(self.axis, 0, before).zero_()
        else:
            extended.narrow(self.axis, 0, before).copy_(self.held)
        if silu:        # written where it belongs: a pass over the features less
            torch.ops.aten.silu.out(x, out=extended.narrow(self.axis, before, count))
        else:
            extended.narrow(self.axis, before, count).copy_(x)
        if last:
            extended.narrow(self.axis, before + count, self.edge).zero_()
        return extended


class _Step:
    """A layer of an encoder or decoder for features that come part by part, without gradients: it works in place where it can."""

    def __init__(self, layer: nn.Module, axis: int) -> None:
        self.layer, self.axis = layer, axis
        convolutions = [layer.first, layer.second] if isinstance(layer, ResidualBlock) else [layer] if isinstance(layer, nn.Conv2d) else []
        self.convolutions = [_Sliding(convolution, axis) for convolution in convolutions]
        self.around = isinstance(layer, ResidualBlock | Halve | Widen)
        self.held: Tensor | None = None

    def push(self, x: Tensor, last: bool) -> Tensor | None:
        if isinstance(self.layer, nn.SiLU):
            return F.silu(x, inplace=True)
        if not self.convolutions:
            return self.layer(x)
        y: Tensor | None = x
        for convolution in self.convolutions:
            y = convolution.take(y, last, silu=isinstance(self.layer, ResidualBlock))     # frees the y before: 14 bytes a pixel
            y = convolution.convolve(y)
            if y is None:
                break
        return self._with_shortcut(y, x) if self.around else y

    def _with_shortcut(self, y: Tensor | None, x: Tensor) -> Tensor | None:
        """Adds to the convolutions' output what goes around them: first what was held of it, then the beginning of x."""
        if y is None:
            self.held = self._joined(x)
            return None
        stride = self.convolutions[0].stride        # 2 where the resolution halves; every other layer keeps it
        length, before = y.shape[self.axis], 0 if self.held is None else self.held.shape[self.axis]
        if before % stride or before > length * stride:
            x, self.held, before = self._joined(x), None, 0
        if self.held is not None:
            self._add(y, 0, self.held)
        used = length * stride - before
        if used:
            self._add(y, before // stride, x.narrow(self.axis, 0, used))
        rest = x.shape[self.axis] - used
        self.held = x.narrow(self.axis, used, rest).clone() if rest else None
        return y

    def _joined(self, x: Tensor) -> Tensor:
        return x if self.held is None else torch.cat([self.held, x], self.axis)

    def _add(self, y: Tensor, start: int, x: Tensor) -> None:
        halving = isinstance(self.layer, Halve)
        part = y.narrow(self.axis, start, x.shape[self.axis] // (2 if halving else 1))
        if isinstance(self.layer, Halve | Widen):
            self.layer.add_shortcut(part, x)
        else:
            part.add_(x)


def in_parts(network: Encoder | Decoder, parts: Iterable[Tensor], axis: int, most: int) -> Iterator[Tensor]:
    """What a network makes of its input, which comes in parts along an axis, 2 (rows) or 3 (columns): part by part along the same axis.

    Nothing is computed twice, and put together it is what comes out at once, up to float rounding: each layer keeps the few rows that
    its next part needs. A part holds `most` positions of the input along the axis at the most; later layers, which get the end of
    the input all at once, cut theirs to the same size.
    """
    unit, steps = 1.0, []
    for layer in network:
        steps.append((_Step(layer, axis), round(most / unit)))
        unit *= _scale(layer, axis)
    waiting: Tensor | None = None
    for part in parts:
        if waiting is not None:
            yield from _through(steps, waiting, False)
        waiting = part
    if waiting is not None:
        yield from _through(steps, waiting, True)


def _scale(layer: nn.Module, axis: int) -> float:
    """How many positions of a layer's input one of its output stands for, along an axis."""
    if isinstance(layer, nn.PixelUnshuffle):
        return layer.downscale_factor
    if isinstance(layer, nn.PixelShuffle):
        return 1 / layer.upscale_factor
    return layer.stride[axis - 2] if isinstance(layer, nn.Conv2d) else 1


def _through(steps: list[tuple[_Step, int]], x: Tensor, last: bool) -> Iterator[Tensor]:
    """One part through the layers that are left."""
    for i, (step, most) in enumerate(steps):
        if x.shape[step.axis] > 1.5 * most:         # the limit is for the memory's sake: parts that are a little larger do not hurt
            pieces = x.chunk(-(-x.shape[step.axis] // most), step.axis)
            for k, piece in enumerate(pieces):
                yield from _through(steps[i:], piece, last and k == len(pieces) - 1)
            return
        y = step.push(x, last)
        if y is None:
            return
        x = y
    yield x


class VQVAE(nn.Module):
    """Encoder, quantizer, decoder and likelihood in one."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.quantizer = quantizers.build(config)
        self.decoder = Decoder(config)
        self.likelihood = losses.build(config)

    def forward(self, pictures: Tensor) -> Output:
        """pictures (B, C, H, W) in [-1, 1], H and W multiples of f."""
        quantized: Quantized = self.quantizer(self.encoder(pictures))
        output = self.decoder(quantized.vectors).float()
        loss = self.likelihood(output, pictures) + quantized.loss
        return Output(self.likelihood.mean(output), quantized.indices, loss)

    def encode(self, pictures: Tensor) -> Tensor:
        """Indices (B, L, h, w) of pictures (B, C, H, W) in [-1, 1], H and W multiples of f."""
        return self.quantizer(self.encoder(pictures)).indices

    def decode(self, indices: Tensor) -> Tensor:
        """Pictures (B, C, h*f, w*f) in [-1, 1] from indices (B, L, h, w), or from those of the first few levels."""
        return self.likelihood.mean(self.decoder(self.quantizer.lookup(indices)).float())

    def release_state(self) -> dict[str, Tensor]:
        """The tensors that encoding and decoding need, without the training state of the quantizer."""
        return {name: value for name, value in self.state_dict().items() if ".average." not in name}

