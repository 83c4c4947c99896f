"""Pixels a second of a model of ours beside a classic f16 tokenizer, encoding and decoding, from
uint8 images to indices and back.

    python benchmarks/classic.py [--model photo] [--sizes 256x256 768x512] [--threads 2]
        [--rounds 3] [--device cpu]

The classic one is written here from its published description (VQGAN: Esser et al. 2021, arXiv
2012.09841, which follows the U-Net of DDPM: Ho et al. 2020, arXiv 2006.11239, appendix B; the
codebook of 16,384 normalized vectors of 8 numbers is that of LlamaGen's VQ-16: Sun et al. 2024,
arXiv 2406.06525). Its weights are random: time does not depend on what they are. It runs with
its features laid out both ways, and the faster counts. All are fp32, with the quantizer, in
turn; figures are medians.
"""

import argparse
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from timing import Call, alternate, machine, table
from torch import Tensor, nn

from vqtok import load
from vqtok.networks.vqvae import to_float, to_uint8

WIDTH, MULTIPLIERS, LATENT = 128, (1, 1, 2, 2, 4), 256
BLOCKS = 2  # residual blocks a level of the encoder; the decoder has one more
CODES, CODE_DIM = 16384, 8
GROUPS = 32


class Normalized(nn.Sequential):
    """GroupNorm, swish, 3x3 convolution: (B, C, H, W) -> (B, D, H, W)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            nn.GroupNorm(GROUPS, inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1)
        )


class Residual(nn.Module):
    """Two of these around which goes the input, through a 1x1 convolution where channels change:
    (B, C, H, W) -> (B, D, H, W).
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(Normalized(inputs, outputs), Normalized(outputs, outputs))
        self.around = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.around(x) + self.layers(x)


class Attention(nn.Module):
    """Each position attends to all, one head: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, channels)
        self.inward, self.outward = (
            nn.Conv2d(channels, 3 * channels, 1),
            nn.Conv2d(channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        # (B, H*W, C) each
        q, k, v = self.inward(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, 2)
        return x + self.outward(
            F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        )


def middle(channels: int) -> list[nn.Module]:
    return [Residual(channels, channels), Attention(channels), Residual(channels, channels)]


def encoder() -> nn.Sequential:
    """Images (B, 3, H, W) -> vectors (B, 8, H/16, W/16)."""
    channels = WIDTH
    layers: list[nn.Module] = [nn.Conv2d(3, channels, 3, padding=1)]
    for level, multiplier in enumerate(MULTIPLIERS):
        lowest = level == len(MULTIPLIERS) - 1
        for _ in range(BLOCKS):
            layers.append(Residual(channels, WIDTH * multiplier))
            channels = WIDTH * multiplier
            layers += [Attention(channels)] if lowest else []
        if not lowest:
            layers += [nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(channels, channels, 3, stride=2)]
    return nn.Sequential(
        *layers, *middle(channels), Normalized(channels, LATENT), nn.Conv2d(LATENT, CODE_DIM, 1)
    )


def decoder() -> nn.Sequential:
    """Vectors (B, 8, h, w) -> images (B, 3, h*16, w*16)."""
    channels = WIDTH * MULTIPLIERS[-1]
    layers: list[nn.Module] = [
        nn.Conv2d(CODE_DIM, LATENT, 1),
        nn.Conv2d(LATENT, channels, 3, padding=1),
        *middle(channels),
    ]
    for level, multiplier in reversed(list(enumerate(MULTIPLIERS))):
        for _ in range(BLOCKS + 1):
            layers.append(Residual(channels, WIDTH * multiplier))
            channels = WIDTH * multiplier
            layers += [Attention(channels)] if level == len(MULTIPLIERS) - 1 else []
        if level:
            layers += [nn.Upsample(scale_factor=2), nn.Conv2d(channels, channels, 3, padding=1)]
    return nn.Sequential(*layers, Normalized(channels, 3))


def place(network: nn.Sequential, device: str, layout: torch.memory_format) -> nn.Sequential:
    return network.to(device=device, memory_format=layout)  # type: ignore[call-overload]


class Classic:
    """The tokenizer on a device, its features in one memory layout."""

    def __init__(self, device: str, layout: torch.memory_format) -> None:
        torch.manual_seed(0)
        self.device, self.layout = device, layout
        self.encoder, self.decoder = (
            place(part.eval(), device, layout) for part in (encoder(), decoder())
        )
        self.codebook = F.normalize(torch.randn(CODES, CODE_DIM), dim=1).to(device)

    @torch.inference_mode()
    def encode(self, images: np.ndarray) -> np.ndarray:
        """Indices (B, h, w) of uint8 (B, H, W, 3).

        Of unit vectors the nearest is the one with the largest product.
        """
        x = to_float(torch.from_numpy(images).to(self.device).permute(0, 3, 1, 2)).contiguous(
            memory_format=self.layout
        )
        z = self.encoder(x).permute(0, 2, 3, 1)  # (B, h, w, 8)
        scores = F.normalize(z, dim=-1).reshape(-1, CODE_DIM) @ self.codebook.T  # (B*h*w, K)
        return scores.argmax(1).reshape(z.shape[:3]).cpu().numpy()

    @torch.inference_mode()
    def decode(self, indices: np.ndarray) -> np.ndarray:
        """uint8 (B, H, W, 3) from (B, h, w)."""
        vectors = F.embedding(torch.from_numpy(indices).to(self.device), self.codebook).permute(
            0, 3, 1, 2
        )
        output = self.decoder(vectors.contiguous(memory_format=self.layout))
        return to_uint8(output).permute(0, 2, 3, 1).contiguous().cpu().numpy()


def numbers(*parts: Any) -> str:
    return f"{sum(value.numel() for part in parts for value in part.parameters()) / 1e6:.1f} M"


def compare(name: str, calls: dict[str, Call], pixels: int, rounds: int) -> list[list[str]]:
    """Rows of the table: seconds, megapixels a second, and how many times as fast ours is."""
    times = alternate(calls, rounds)
    ours = next(iter(times.values()))
    best = min(list(times.values())[1:])
    print(f"{name}: {best / ours:.1f} times as fast", flush=True)
    return [
        [name, who, f"{taken:.3f}", f"{pixels / taken / 1e6:.3f}", f"{taken / ours:.1f}"]
        for who, taken in times.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="photo")
    parser.add_argument("--sizes", nargs="+", default=["256x256", "768x512"], help="WIDTHxHEIGHT")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = load(options.model, options.device)
    layouts = {"classic": torch.contiguous_format, "classic, channels last": torch.channels_last}
    peers = {name: Classic(options.device, layout) for name, layout in layouts.items()}
    print(
        f"{machine()}, {model.device.type}, fp32; {model.name}: {numbers(model.network)} "
        f"numbers, classic: {numbers(peers['classic'].encoder, peers['classic'].decoder)} "
        f"and {CODES} codes\n"
    )
    rows = []
    for size in options.sizes:
        width, height = map(int, size.split("x"))
        pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
        codes, grid = (
            model.encode_batch([pixels]),
            np.random.default_rng(0).integers(0, CODES, (1, height // 16, width // 16)),
        )
        encoders: dict[str, Call] = {model.name: partial(model.encode_batch, [pixels])}
        decoders: dict[str, Call] = {model.name: partial(model.decode, codes)}
        encoders |= {name: partial(peer.encode, pixels[None]) for name, peer in peers.items()}
        decoders |= {name: partial(peer.decode, grid) for name, peer in peers.items()}
        rows += compare(f"encode {size}", encoders, height * width, options.rounds)
        rows += compare(f"decode {size}", decoders, height * width, options.rounds)
    print("\n" + table(["", "tokenizer", "seconds", "megapixels/s", "times ours"], rows))


if __name__ == "__main__":
    main()
