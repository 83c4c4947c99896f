"""Tiny random tokenizers laid out as three other programs do it, and what their
networks make of an image.

Written from the sources that docs/interoperate.md names, without vqtok's own
network and table of names.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from conftest import image
from torch import Tensor

from vqtok import codec, interop, weights

STAGES, Z, K, D = (32, 32, 64), 8, 40, 4


@dataclass
class Source:
    """Names of a program; `block` and `attn` are of stage i, number j, in
    encoder (e) and decoder (d).
    """

    block: Callable[[str, int, int], str]
    attn: Callable[[str, int, int], str]
    resample: Callable[[str, int], str]
    middle: tuple[str, str, str]
    norm: str
    shortcut: str
    attention: tuple[str, ...]  # norm, query, key, value, out
    attends: tuple[int, ...]  # stages; 3 is the middle
    groups: int = 32
    unit: bool = False
    linear: bool = False
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def get(self, name: str, *shape: int) -> Tensor:
        """A tensor, drawn when it is first asked for."""
        if name not in self.tensors:
            noise = torch.randn(shape) / max(1, int(np.prod(shape[1:]))) ** 0.5
            scale = name.endswith("weight") and len(shape) == 1
            self.tensors[name] = (
                1 + 0.2 * noise if scale else 0.1 * noise if len(shape) == 1 else 1.4 * noise
            )
        return self.tensors[name]

    def conv(self, x: Tensor, name: str, outputs: int, size: int = 3, stride: int = 1) -> Tensor:
        weight = self.get(f"{name}.weight", outputs, x.shape[1], size, size)
        x = F.pad(x, (0, 1, 0, 1)) if stride == 2 else x
        return F.conv2d(
            x, weight, self.get(f"{name}.bias", outputs), stride, 0 if stride == 2 else size // 2
        )

    def group(self, x: Tensor, name: str) -> Tensor:
        weight, bias = (self.get(f"{name}.{leaf}", x.shape[1]) for leaf in ("weight", "bias"))
        return F.group_norm(x, self.groups, weight, bias, 1e-6)

    def residual(self, x: Tensor, name: str, outputs: int) -> Tensor:
        y = self.conv(F.silu(self.group(x, f"{name}.norm1")), f"{name}.conv1", outputs)
        y = self.conv(F.silu(self.group(y, f"{name}.norm2")), f"{name}.conv2", outputs)
        return y + (
            x if x.shape[1] == outputs else self.conv(x, f"{name}.{self.shortcut}", outputs, 1)
        )

    def attend(self, x: Tensor, name: str) -> Tensor:
        B, C, H, W = x.shape
        norm, *names = self.attention
        tokens = self.group(x, f"{name}.{norm}").reshape(B, C, H * W).transpose(1, 2)
        shape = (C, C) if self.linear else (C, C, 1, 1)

        def dense(x: Tensor, part: str) -> Tensor:
            return x @ self.get(f"{name}.{part}.weight", *shape).reshape(C, C).T + self.get(
                f"{name}.{part}.bias", C
            )

        query, key, value = (dense(tokens, part) for part in names[:3])
        mixed = torch.softmax(query @ key.transpose(1, 2) / C**0.5, 2) @ value
        return x + dense(mixed, names[3]).transpose(1, 2).reshape(B, C, H, W)

    def blocks(self, x: Tensor, side: str, i: int, count: int) -> Tensor:
        for j in range(count):
            x = self.residual(x, self.block(side, i, j), STAGES[i])
            x = self.attend(x, self.attn(side, i, j)) if i in self.attends else x
        return x

    def mid(self, x: Tensor, side: str) -> Tensor:
        before, attention, after = (f"{side}.{name}" for name in self.middle)
        x = self.residual(x, before, STAGES[-1])
        x = self.attend(x, attention) if 3 in self.attends else x
        return self.residual(x, after, STAGES[-1])

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Indices (h, w) of an image (1, 3, H, W)."""
        x = self.conv(x, "encoder.conv_in", STAGES[0])
        for i, channels in enumerate(STAGES):
            x = self.blocks(x, "encoder", i, 1)
            x = self.conv(x, self.resample("encoder", i), channels, stride=2) if i < 2 else x
        x = self.conv(
            F.silu(self.group(self.mid(x, "encoder"), f"encoder.{self.norm}")),
            "encoder.conv_out",
            Z,
        )
        x = self.conv(x, "quant_conv", D, 1)[0].permute(1, 2, 0)
        x = F.normalize(x, dim=-1) if self.unit else x
        return (x[..., None, :] - self.codebook()).square().sum(-1).argmin(-1)

    @torch.no_grad()
    def decode(self, indices: Tensor) -> Tensor:
        """The image (1, 3, H, W) of indices (h, w)."""
        x = self.codebook()[indices].permute(2, 0, 1)[None]
        x = self.mid(
            self.conv(self.conv(x, "post_quant_conv", Z, 1), "decoder.conv_in", STAGES[-1]),
            "decoder",
        )
        for i in reversed(range(3)):
            x = self.blocks(x, "decoder", i, 2)
            x = (
                self.conv(
                    F.interpolate(x, scale_factor=2.0), self.resample("decoder", i), STAGES[i]
                )
                if i
                else x
            )
        return self.conv(F.silu(self.group(x, f"decoder.{self.norm}")), "decoder.conv_out", 3)

    def codebook(self) -> Tensor:
        codebook = self.get("quantize.embedding.weight", K, D)
        return F.normalize(codebook, dim=-1) if self.unit else codebook


def taming() -> Source:
    way = {"encoder": "down", "decoder": "up"}
    source = Source(
        lambda side, i, j: f"{side}.{way[side]}.{i}.block.{j}",
        lambda side, i, j: f"{side}.{way[side]}.{i}.attn.{j}",
        lambda side, i: f"{side}.{way[side]}.{i}.{way[side]}sample.conv",
        ("mid.block_1", "mid.attn_1", "mid.block_2"),
        "norm_out",
        "nin_shortcut",
        ("norm", "q", "k", "v", "proj_out"),
        (2, 3),
    )
    return _drawn(source)


def llamagen() -> Source:
    way = {"encoder": "down", "decoder": "up"}

    def stage(side: str, i: int) -> str:
        return f"{side}.conv_blocks.{i if side == 'encoder' else 2 - i}"

    source = Source(
        lambda side, i, j: f"{stage(side, i)}.res.{j}",
        lambda side, i, j: f"{stage(side, i)}.attn.{j}",
        lambda side, i: f"{stage(side, i)}.{way[side]}sample.conv",
        ("mid.0", "mid.1", "mid.2"),
        "norm_out",
        "nin_shortcut",
        ("norm", "q", "k", "v", "proj_out"),
        (2, 3),
        unit=True,
    )
    return _drawn(source)


def diffusers(old: bool = False) -> Source:
    def stage(side: str, i: int) -> str:
        return f"{side}.down_blocks.{i}" if side == "encoder" else f"{side}.up_blocks.{2 - i}"

    way = {"encoder": "down", "decoder": "up"}
    names = ("query", "key", "value", "proj_attn") if old else ("to_q", "to_k", "to_v", "to_out.0")
    source = Source(
        lambda side, i, j: f"{stage(side, i)}.resnets.{j}",
        lambda side, i, j: f"{stage(side, i)}.attentions.{j}",
        lambda side, i: f"{stage(side, i)}.{way[side]}samplers.0.conv",
        ("mid_block.resnets.0", "mid_block.attentions.0", "mid_block.resnets.1"),
        "conv_norm_out",
        "conv_shortcut",
        ("group_norm", *names),
        (1, 2),
        groups=16,
        linear=True,
    )
    return _drawn(source)


def _drawn(source: Source) -> Source:
    torch.manual_seed(0)
    source.decode(source.encode(torch.zeros(1, 3, 8, 8)))
    return source


SOURCES: dict[str, Callable[[], Source]] = {
    "taming": taming,
    "llamagen": llamagen,
    "diffusers": diffusers,
}


def save(name: str, folder: Path) -> tuple[Source, Path]:
    """A source's model as its program saves it, below a folder:
    what it is, and what `vqtok import` is given.
    """
    source = SOURCES[name]()
    folder.mkdir(parents=True, exist_ok=True)
    if name == "taming":
        loss = {
            "loss.discriminator.main.0.weight": torch.zeros(4, 3, 4, 4),
            "loss.logvar": torch.zeros(()),
        }
        path = folder / "last.ckpt"
        torch.save(
            {
                "epoch": 3,
                "global_step": 7,
                "state_dict": source.tensors | loss,
                "optimizer_states": [{"state": {}}],
            },
            path,
        )
    elif name == "llamagen":
        path = folder / "vq_ds4_c2i.pt"
        torch.save({"model": source.tensors | {"quantize.codebook_used": torch.zeros(65536)}}, path)
    else:
        path = folder / "vqvae"
        path.mkdir()
        safetensors.torch.save_file(
            source.tensors, path / "diffusion_pytorch_model.safetensors", {"format": "pt"}
        )
        (path / "config.json").write_text(
            json.dumps({"_class_name": "VQModel", "act_fn": "silu", "norm_num_groups": 16})
        )
    return source, path


def imported(path: Path, folder: Path, **options: Any) -> codec.Model:
    """The checkpoint as a model in a folder; options are those of `ImportOptions`."""
    found = interop.convert_checkpoint(
        interop.read_checkpoint(path), interop.ImportOptions(**options)
    )
    weights.save_weights(folder / "tokenizer.safetensors", found.weights)
    return codec.load(folder)


class Network(Protocol):
    """Another program's network, on images in the range that it takes."""

    def encode(self, x: Tensor) -> Tensor: ...
    def decode(self, indices: Tensor) -> Tensor: ...


def as_floats(pixels: np.ndarray, half: float = 1.0) -> Tensor:
    """Floats (1, 3, H, W) between -half and half, of uint8 (H, W, 3)."""
    return (torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1) * half


def check_same(
    source: Network,
    model: codec.Model,
    half: float = 1.0,
    size: tuple[int, int] = (24, 32),
    rtol: float = 0,
    atol: float = 1e-4,
) -> None:
    """Equal indices, and images that differ by rounding, on images that use many codes. The other
    network takes values between -half and half.
    """
    for seed in range(3):
        pixels = image(*size, seed=seed)
        codes = model.encode(pixels)
        wanted = source.encode(as_floats(pixels, half))
        assert np.array_equal(codes.indices[0, 0], wanted.numpy())
        assert len(wanted.unique()) > 3
        ours = model.output(codes, 0) * half
        torch.testing.assert_close(ours, source.decode(wanted), rtol=rtol, atol=atol)
