"""Computes LPIPS: the distance of two images in the features of a classifier (Zhang et al. 2018,
arXiv 1801.03924, version 0.1).

The weights are a safetensors file that the user gives: `features.N.weight` and `.bias` of
torchvision's VGG-16 or AlexNet, and the linear heads `lin0..4.model.1.weight`. Which of the two
networks it is, its shapes tell.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqtok import distributed, weights
from vqtok.config import LossConfig
from vqtok.errors import UsageError
from vqtok.losses.base import LossTerm

SHIFT = (-0.030, -0.088, -0.188)  # ImageNet's mean and deviation, for images in [-1, 1]
SCALE = (0.458, 0.448, 0.450)
EPSILON = 1e-10
ELEMENTS = 2**16  # of features that operations go over while they are in a core's cache


@dataclass(frozen=True)
class _Conv:
    """Describes one convolution of a backbone: its position in torchvision's `features`, and its
    shape.
    """

    position: int
    inputs: int
    outputs: int
    kernel: int = 3
    stride: int = 1


@dataclass(frozen=True)
class _Backbone:
    """Describes a backbone in five slices; each ends where a head reads.

    All but the first begin with a max pooling where `pool` says so.
    """

    name: str
    slices: tuple[tuple[_Conv, ...], ...]
    pool: tuple[bool, ...]
    window: int  # of the max pooling, with a stride of 2


VGG = _Backbone(
    "VGG-16",
    (
        (_Conv(0, 3, 64), _Conv(2, 64, 64)),
        (_Conv(5, 64, 128), _Conv(7, 128, 128)),
        (_Conv(10, 128, 256), _Conv(12, 256, 256), _Conv(14, 256, 256)),
        (_Conv(17, 256, 512), _Conv(19, 512, 512), _Conv(21, 512, 512)),
        (_Conv(24, 512, 512), _Conv(26, 512, 512), _Conv(28, 512, 512)),
    ),
    (False, True, True, True, True),
    2,
)
ALEX = _Backbone(
    "AlexNet",
    (
        (_Conv(0, 3, 64, 11, 4),),
        (_Conv(3, 64, 192, 5),),
        (_Conv(6, 192, 384),),
        (_Conv(8, 384, 256),),
        (_Conv(10, 256, 256),),
    ),
    (False, True, True, False, False),
    3,
)


class _ChunkedDistance(torch.autograd.Function):
    """Computes `LPIPS.between` for one slice's features (B, C, h, w) before they are made of unit
    length; y gets no gradient.

    On a CPU, where a fifth of the time of LPIPS went into walking over features of full resolution
    again and again: here all operations go over a few hundred kilobytes of them, in float32, while
    these are in cache, in the backward pass once more.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, head: Tensor) -> Tensor:
        ctx.save_for_backward(x, y, head)
        sums = []
        for a, b in zip(_rows(x), _rows(y), strict=True):
            total = head.new_zeros(())
            for part, other in zip(*_split(a, b), strict=True):
                difference = _unit(part)[0].sub_(_unit(other)[0])  # (n, C)
                total += (difference.square_() @ head).sum()
            sums.append(total / len(a))
        return torch.stack(sums)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        x, y, head = ctx.saved_tensors
        found = torch.empty_like(x)
        for a, b, out, scale in zip(_rows(x), _rows(y), _rows(found), gradients[0], strict=True):
            weights = head * (scale * (2 / len(a)))  # (C,)
            for part, other, target in zip(*_split(a, b, out), strict=True):
                unit, inverse = _unit(part)
                along = (unit - _unit(other)[0]).mul_(weights)  # by the vector of unit length
                # which cannot grow
                along.addcmul_(unit, torch.linalg.vecdot(unit, along)[:, None], value=-1)
                target.copy_(along.mul_(inverse))
        return found, None, None


def _rows(features: Tensor) -> Tensor:
    """Reshapes (B, C, h, w) to (B, h*w, C), of the same memory where that is channels last."""
    return features.permute(0, 2, 3, 1).flatten(1, 2)


def _split(*features: Tensor) -> list[tuple[Tensor, ...]]:
    """Splits (n, C) into parts that stay in a core's cache."""
    return [f.split(max(1, ELEMENTS // f.shape[1])) for f in features]


def _unit(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Scales rows (n, C) to unit length in float32; returns them and the inverse of their lengths,
    (n, 1).
    """
    rows = rows.float()
    inverse = torch.linalg.vector_norm(rows, dim=1, keepdim=True).add_(EPSILON).reciprocal_()
    return rows * inverse, inverse


class LPIPS(nn.Module):
    """Computes the distance of images (B, 3, H, W) in [-1, 1]; (B,), 0 for equal ones.

    It learns nothing itself.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, backbone: _Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.register_buffer("shift", torch.tensor(SHIFT)[:, None, None])
        self.register_buffer("scale", torch.tensor(SCALE)[:, None, None])
        convs = [conv for part in backbone.slices for conv in part]
        self.convs = nn.ModuleDict(
            {
                str(c.position): nn.Conv2d(c.inputs, c.outputs, c.kernel, c.stride, _padding(c))
                for c in convs
            }
        )
        self.heads = nn.ParameterList(torch.zeros(part[-1].outputs) for part in backbone.slices)
        self.requires_grad_(False)
        self._cast: dict[str, tuple[Tensor, Tensor | None]] = {}

    def keep_cast(self, dtype: torch.dtype) -> None:
        """Keeps a copy of the convolutions' weights in the type that autocast computes in, which
        would cast them at every call.
        """
        for position, conv in self.convs.items():
            assert isinstance(conv, nn.Conv2d)
            bias = None if conv.bias is None else conv.bias.to(dtype)
            self._cast[position] = conv.weight.to(dtype), bias

    def _convolve(self, x: Tensor, position: str) -> Tensor:
        conv = self.convs[position]
        assert isinstance(conv, nn.Conv2d)
        if not self._cast or not torch.is_autocast_enabled(x.device.type):
            return conv(x)
        assert not isinstance(conv.padding, str)
        return F.conv2d(x, *self._cast[position], conv.stride, conv.padding)

    def features(self, images: Tensor) -> list[Tensor]:
        """Computes features of each slice, (B, C, h, w), of unit length over C."""
        found = self.slices(images)
        lengths = [
            f.square().sum(1, keepdim=True, dtype=torch.float32).sqrt() + EPSILON for f in found
        ]
        return [
            f * length.reciprocal().to(f.dtype) for f, length in zip(found, lengths, strict=True)
        ]

    def slices(
        self, images: Tensor, pool_by: Callable[[Tensor], Tensor] | None = None
    ) -> list[Tensor]:
        """Computes features of each slice, (B, C, h, w), as they come; `pool_by` halves the sides
        in place of the maximum.
        """
        x = (images - self.shift) / self.scale
        found = []
        for part, pool in zip(self.backbone.slices, self.backbone.pool, strict=True):
            if pool:
                x = pool_by(x) if pool_by else F.max_pool2d(x, self.backbone.window, 2)
            for conv in part:
                x = F.relu(self._convolve(x, str(conv.position)), inplace=True)
            found.append(x)
        return found

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        # the quick way gives y no gradient
        if x.device.type != "cpu" or y.requires_grad or torch.compiler.is_compiling():
            return self.between(self.features(x), self.features(y))
        slices = zip(self.slices(x), self.slices(y), self.heads, strict=True)
        distances = [_ChunkedDistance.apply(a, b, head) for a, b, head in slices]
        return torch.stack(distances).sum(0)  # type: ignore[arg-type]

    def between(self, x: list[Tensor], y: list[Tensor]) -> Tensor:
        """Distances (B,) of features: their squared differences, weighed by channel, averaged over
        places, summed over slices.
        """
        weighed = [
            F.conv2d((a - b).square(), head[None, :, None, None])
            for a, b, head in zip(x, y, self.heads, strict=True)
        ]
        return torch.stack([part.float().mean((1, 2, 3)) for part in weighed]).sum(0)


class PerceptualTerm(LossTerm):
    """Computes the mean LPIPS of the first `perceptual_part` of the images."""

    def __init__(self, config: LossConfig, file: Path | None, size: int) -> None:
        super().__init__(config, file, size)
        if file is None:
            raise UsageError(
                "the recipe wants the perceptual distance, which needs the weights of its network",
                "give --perceptual FILE (LPIPS weights as safetensors), or leave it out: "
                "--set losses.perceptual=0",
            )
        self.part, self.lpips = config.perceptual_part, load_lpips(file)

    def keep_cast(self, dtype: torch.dtype) -> None:
        self.lpips.keep_cast(dtype)

    def forward(self, reconstruction: Tensor, images: Tensor, shared: bool) -> Tensor:
        """Returns, of a shared batch, this process's share of the mean times the number of
        processes.
        """
        processes = distributed.world_size() if shared else 1
        count = max(1, round(self.part * processes * len(images)))
        mine = distributed.local_count(count) if shared else count
        if not mine:
            return reconstruction.new_zeros(())
        # gray images have one channel, the network three
        x, y = (images[:mine].expand(-1, 3, -1, -1) for images in (reconstruction, images))
        return self.lpips(x, y).mean() * (mine * processes / count)


def load_lpips(path: Path) -> LPIPS:
    """Loads the distance whose weights a safetensors file holds.

    InputError: not readable. FormatError: no such weights, or damaged.
    """
    tensors = weights.read_tensors(path)
    first = tensors.get("features.0.weight")
    backbone = ALEX if first is not None and first.shape == (64, 3, 11, 11) else VGG
    convs = [conv for part in backbone.slices for conv in part]
    shapes: dict[str, tuple[int, ...]] = {}
    for c in convs:
        shapes |= {
            f"features.{c.position}.weight": (c.outputs, c.inputs, c.kernel, c.kernel),
            f"features.{c.position}.bias": (c.outputs,),
        }
    shapes |= {
        f"lin{i}.model.1.weight": (1, part[-1].outputs, 1, 1)
        for i, part in enumerate(backbone.slices)
    }
    weights.check_tensors(tensors, shapes, f"{path}, taken for LPIPS on {backbone.name},")
    network = LPIPS(backbone)
    with torch.no_grad():
        for c in convs:
            conv = network.convs[str(c.position)]
            assert isinstance(conv, nn.Conv2d)
            assert conv.bias is not None
            conv.weight.copy_(torch.from_numpy(tensors[f"features.{c.position}.weight"]))
            conv.bias.copy_(torch.from_numpy(tensors[f"features.{c.position}.bias"]))
        for i, head in enumerate(network.heads):
            head.copy_(torch.from_numpy(tensors[f"lin{i}.model.1.weight"]).flatten())
    return network.eval()


def _padding(conv: _Conv) -> int:
    return {3: 1, 5: 2, 11: 2}[conv.kernel]
