"""Random checkpoints of Open-MAGVIT2, MaskGIT-VQGAN and VQ-VAE-2, and what their networks make of
an image: written out from the shapes of their tensors.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from paper_helpers import Net
from torch import Tensor


@dataclass
class Foreign:
    """A checkpoint; its network takes pixels from `low` to `high`."""

    low: float
    high: float
    net: Net = field(default_factory=Net)

    def encode(self, x: Tensor) -> Tensor:
        """Indices of an image (1, 3, H, W), as vqtok's (L, h, w)."""
        raise NotImplementedError

    def decode(self, indices: Tensor) -> Tensor:
        """The image (1, 3, H, W) of indices (L, h, w)."""
        raise NotImplementedError

    def group(self, x: Tensor, name: str) -> Tensor:
        for leaf in ("weight", "bias"):
            self.net.get(f"{name}.{leaf}", x.shape[1])
        weight = 1 + self.net.tensors[f"{name}.weight"]
        return F.group_norm(x, 32, weight, self.net.tensors[f"{name}.bias"], 1e-6)

    def conv(
        self, x: Tensor, name: str, out: int, size: int = 3, bias: bool = True, stride: int = 1
    ) -> Tensor:
        weight = self.net.get(f"{name}.weight", out, x.shape[1], size, size)
        added = self.net.get(f"{name}.bias", out) if bias else None
        return F.conv2d(x, weight, added, stride, size // 2)

    def inner(self, x: Tensor, name: str, out: int) -> Tensor:
        """A residual block's two convolutions, which have no bias."""
        y = self.conv(F.silu(self.group(x, f"{name}.norm1")), f"{name}.conv1", out, bias=False)
        return self.conv(F.silu(self.group(y, f"{name}.norm2")), f"{name}.conv2", out, bias=False)

    def finished(self) -> dict[str, Tensor]:
        """The tensors as a file holds them: weights of normalizations lie around 1."""
        return {
            name: value + 1 if "norm" in name and name.endswith("weight") else value
            for name, value in self.net.tensors.items()
        }


@dataclass
class Magvit2(Foreign):
    bits: int = 18
    stages: tuple[int, ...] = (32, 64, 64)
    blocks: int = 2

    def block(self, x: Tensor, name: str, out: int) -> Tensor:
        y = self.inner(x, name, out)
        if x.shape[1] != out:
            x = self.conv(x, f"{name}.nin_shortcut", out, 1, bias=False)
        return x + y

    def middle(self, x: Tensor, side: str) -> Tensor:
        for j in range(self.blocks):
            x = self.block(x, f"{side}.mid_block.{j}", self.stages[-1])
        return x

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        x = self.conv(x, "encoder.conv_in", self.stages[0], bias=False)
        for i, channels in enumerate(self.stages):
            for j in range(self.blocks):
                x = self.block(x, f"encoder.down.{i}.block.{j}", channels)
            if i < len(self.stages) - 1:
                x = self.conv(x, f"encoder.down.{i}.downsample", channels, stride=2)
        x = F.silu(self.group(self.middle(x, "encoder"), "encoder.norm_out"))
        z = self.conv(x, "encoder.conv_out", self.bits, 1)[0]
        return sum((z[i] > 0).long() << i for i in range(self.bits))[None]  # type: ignore[index]

    @torch.no_grad()
    def decode(self, indices: Tensor) -> Tensor:
        bits = [(indices[0] >> i) & 1 for i in range(self.bits)]
        z = 2.0 * torch.stack(bits)[None] - 1
        x = self.middle(self.conv(z, "decoder.conv_in", self.stages[-1]), "decoder")
        for i in reversed(range(len(self.stages))):
            x = self.adapted(x, z, f"decoder.adaptive.{i}")
            for j in range(self.blocks):
                x = self.block(x, f"decoder.up.{i}.block.{j}", self.stages[i])
            if i:
                x = self.conv(x, f"decoder.up.{i}.upsample.conv1", 4 * self.stages[i])
                B, C, h, w = x.shape
                x = x.view(B, 2, 2, C // 4, h, w).permute(0, 3, 4, 1, 5, 2)
                x = x.reshape(B, C // 4, 2 * h, 2 * w)
        return self.conv(F.silu(self.group(x, "decoder.norm_out")), "decoder.conv_out", 3)

    def adapted(self, x: Tensor, z: Tensor, name: str) -> Tensor:
        flat, n = z[0].flatten(1), x.shape[1]
        gamma, beta = (
            self.net.get(f"{name}.{part}.weight", n, self.bits) @ value
            + self.net.get(f"{name}.{part}.bias", n)
            for part, value in (
                ("gamma", (flat.var(1) + 1e-6).sqrt()),
                ("beta", flat.mean(1)),
            )
        )
        return gamma[:, None, None] * F.group_norm(x, 32, eps=1e-6) + beta[:, None, None]


@dataclass
class MaskGit(Foreign):
    stages: tuple[int, ...] = (32, 64, 64)
    blocks: int = 2
    K: int = 40
    D: int = 12

    def block(self, x: Tensor, name: str, out: int) -> Tensor:
        y = self.inner(x, name, out)
        if x.shape[1] == out:
            return y + x
        return y + self.conv(y, f"{name}.nin_shortcut", out, 1, bias=False)

    def middle(self, x: Tensor, side: str) -> Tensor:
        for j in range(self.blocks):
            x = self.block(x, f"{side}.mid.{j}", self.stages[-1])
        return x

    def vectors(self, x: Tensor) -> Tensor:
        x = self.conv(x, "encoder.conv_in", self.stages[0], bias=False)
        for i, channels in enumerate(self.stages):
            for j in range(self.blocks):
                x = self.block(x, f"encoder.down.{i}.block.{j}", channels)
            x = F.avg_pool2d(x, 2) if i < len(self.stages) - 1 else x
        x = F.silu(self.group(self.middle(x, "encoder"), "encoder.norm_out"))
        return self.conv(x, "encoder.conv_out", self.D, 1)[0].permute(1, 2, 0)  # (h, w, D)

    def codebook(self, z: Tensor) -> Tensor:
        name = "quantize.embedding.weight"
        if name not in self.net.tensors:
            flat = z.flatten(0, 1)
            self.net.tensors[name] = flat[torch.randperm(len(flat))[: self.K]].clone()
        return self.net.tensors[name]

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        z = self.vectors(x)
        return (z[..., None, :] - self.codebook(z)).square().sum(-1).argmin(-1)[None]

    @torch.no_grad()
    def decode(self, indices: Tensor) -> Tensor:
        z = self.net.tensors["quantize.embedding.weight"][indices[0]].permute(2, 0, 1)[None]
        x = self.middle(self.conv(z, "decoder.conv_in", self.stages[-1]), "decoder")
        for i in reversed(range(len(self.stages))):
            for j in range(self.blocks):
                x = self.block(x, f"decoder.up.{i}.block.{j}", self.stages[i])
            if i:
                x = F.interpolate(x, scale_factor=2.0)
                x = self.conv(x, f"decoder.up.{i}.upsample_conv", self.stages[i])
        return self.conv(F.silu(self.group(x, "decoder.norm_out")), "decoder.conv_out", 3)


@dataclass
class TwoGrids(Foreign):
    C: int = 16
    R: int = 8
    blocks: int = 2
    K: int = 24
    D: int = 6

    def stack(self, x: Tensor, name: str, start: int) -> Tensor:
        for i in range(start, start + self.blocks):
            y = self.net.conv(F.relu(x), f"{name}.blocks.{i}.conv.1", self.R, 3)
            x = x + self.net.conv(F.relu(y), f"{name}.blocks.{i}.conv.3", self.C, 1)
        return F.relu(x)

    def coarser(self, x: Tensor, name: str, halves: int) -> Tensor:
        net, i = self.net, 0
        for half in range(halves):
            out = self.C // 2 if half == 0 else self.C
            x = F.relu(net.conv(x, f"{name}.blocks.{i}", out, 4))
            i += 2
        return self.stack(net.conv(x, f"{name}.blocks.{i}", self.C, 3), name, i + 1)

    def codes(self, name: str, z: Tensor) -> Tensor:
        """(D, K), as the file has them."""
        key = f"{name}.embed"
        if key not in self.net.tensors:
            flat = z[0].flatten(1)
            self.net.tensors[key] = flat[:, torch.randperm(flat.shape[1])[: self.K]].clone()
            self.net.tensors[f"{name}.embed_avg"] = self.net.tensors[key] + 1
            self.net.tensors[f"{name}.cluster_size"] = torch.ones(self.K)
        return self.net.tensors[key]

    def nearest(self, name: str, z: Tensor) -> Tensor:
        codes = self.codes(name, z)
        return (z[0][:, None] - codes[:, :, None, None]).square().sum(0).argmin(0)

    def vectors(self, name: str, indices: Tensor) -> Tensor:
        return self.net.tensors[f"{name}.embed"][:, indices][None]

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        net = self.net
        bottom = self.coarser(x, "enc_b", 2)
        z = net.conv(self.coarser(bottom, "enc_t", 1), "quantize_conv_t", self.D, 1)
        top = self.nearest("quantize_t", z)
        y = net.conv(self.vectors("quantize_t", top), "dec_t.blocks.0", self.C, 3)
        y = net.up(self.stack(y, "dec_t", 1), f"dec_t.blocks.{self.blocks + 2}", self.D)
        z = net.conv(torch.cat([y, bottom], 1), "quantize_conv_b", self.D, 1)
        below = self.nearest("quantize_b", z)
        places = [below[i::2, j::2] for i in (0, 1) for j in (0, 1)]
        return torch.stack([top, *places])

    @torch.no_grad()
    def decode(self, indices: Tensor) -> Tensor:
        h, w = indices.shape[1:]
        below = torch.zeros(2 * h, 2 * w, dtype=torch.int64)
        for place in range(4):
            below[place // 2 :: 2, place % 2 :: 2] = indices[1 + place]
        top = self.net.up(self.vectors("quantize_t", indices[0]), "upsample_t", self.D)
        x = torch.cat([top, self.vectors("quantize_b", below)], 1)
        x = self.stack(self.net.conv(x, "dec.blocks.0", self.C, 3), "dec", 1)
        x = F.relu(self.net.up(x, f"dec.blocks.{self.blocks + 2}", self.C // 2))
        return self.net.up(x, f"dec.blocks.{self.blocks + 4}", 3)


MADE: dict[str, Callable[[], Foreign]] = {
    "magvit2": lambda: Magvit2(-1, 1),
    "magvit2-f2": lambda: Magvit2(-1, 1, bits=10, stages=(32, 32), blocks=1),
    "maskgit": lambda: MaskGit(0, 1),
    "maskgit-1": lambda: MaskGit(0, 1, stages=(32, 64), blocks=1),
    "maskgit-3": lambda: MaskGit(0, 1, stages=(32, 32), blocks=3),
    "vqvae2": lambda: TwoGrids(-1, 1),
    "vqvae2-3": lambda: TwoGrids(-0.5, 0.5, blocks=3, C=12),
}


def make_foreign(name: str, seed: int = 0) -> Foreign:
    """A random checkpoint of a program, with all of its tensors."""
    torch.manual_seed(seed)
    made = MADE[name]()
    made.decode(made.encode(torch.rand(1, 3, 64, 64) * (made.high - made.low) + made.low))
    return made
