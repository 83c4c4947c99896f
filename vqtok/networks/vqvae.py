"""Defines the folded encoder and decoder, and the VQ-VAE around a quantizer (van den Oord et al.
2017, arXiv 1711.00937).

The folded network has no normalization over space and no attention: each output depends on a
bounded neighborhood, so that an image of any size can be encoded whole or part by part with the
same result. The other network is in `vqgan`.
"""

from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqtok import losses, quantizers
from vqtok.config import NETWORKS, TokenizerConfig
from vqtok.networks import vqgan
from vqtok.quantizers import Quantized

STREAMABLE = True  # layer by layer, in parts of the image: `streaming`


@dataclass(frozen=True)
class VQVAEOutput:
    """Holds one training step's view of a batch."""

    reconstruction: Tensor  # (B, C, H, W) in [-1, 1]
    indices: Tensor  # (B, L, h, w)
    loss: Tensor  # scalar: reconstruction + codebook + commitment


def to_float(images: Tensor) -> Tensor:
    """Scales uint8 (B, C, H, W) to float32 in [-1, 1], whatever torch's default dtype is."""
    return images.to(torch.float32).div_(127.5).sub_(1)


def to_uint8(images: Tensor) -> Tensor:
    """Scales float in [-1, 1] to uint8, rounded to the nearest gray level."""
    return images.float().clamp(-1, 1).add_(1).mul_(127.5).round_().to(torch.uint8)


class ResidualBlock(nn.Module):
    """Computes x + conv(silu(conv(silu(x)))), (B, C, H, W) -> (B, C, H, W); it starts as the
    identity, its last convolution being zero.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.silu(self.first(F.silu(x))))


class Downsample(nn.Conv2d):
    """Halves the resolution, (B, C, H, W) -> (B, D, H/2, W/2), by a 4x4 convolution beside a path
    without weights.

    That path folds 2x2 positions into channels and averages neighboring ones. A deep
    autoencoder learns far faster with it (Chen et al. 2024, arXiv 2410.10733, section 3.1): the
    f16 photo tokenizer gains 1 dB with one level and 3 dB with eight in 250 steps
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
        """Adds the path without weights in place, with the same numbers: the channels of a
        position's two rows alternate, each the mean of two neighbors in its row.
        """
        means = (input[..., 0::2] + input[..., 1::2]).mul_(0.5)  # (B, C, H, W/2)
        for row in range(2):
            output[:, row::2].add_(means[:, :, row::2])


class Upsample(nn.Conv2d):
    """Doubles the resolution: makes channels (B, 4*D, h, w) of (B, C, h, w), by a 3x3 convolution
    beside repeated channels.

    The counterpart of `Downsample`; PixelShuffle follows it.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, 4 * outputs, 3, padding=1)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + self.shortcut(input)

    def shortcut(self, input: Tensor) -> Tensor:
        return input.repeat_interleave(self.out_channels // self.in_channels, 1)

    def add_shortcut(self, output: Tensor, input: Tensor) -> None:
        """Adds the path without weights in place, with the same numbers."""
        count = self.out_channels // self.in_channels
        for i in range(count):
            output[:, i::count].add_(input)


class Encoder(nn.Sequential):
    """Encodes images (B, C, H, W) in [-1, 1] to vectors (B, D, H/f, W/f).

    Folds `fold` x `fold` pixels into channels first: most of the cost of a tokenizer lies at full
    resolution. Without layers, the identity, where the pixels themselves are quantized.
    """

    def __init__(self, config: TokenizerConfig) -> None:
        if config.is_pixels:
            super().__init__()
            return
        widths = config.encoder_widths
        layers: list[nn.Module] = [
            nn.PixelUnshuffle(config.fold),
            nn.Conv2d(config.channels * config.fold**2, widths[0], 3, padding=1),
        ]
        for stage, width in enumerate(widths):
            if stage:
                finer = widths[stage - 1]
                layers.append(
                    Downsample(finer, width)
                    if config.shortcut
                    else nn.Conv2d(finer, width, 4, stride=2, padding=1)
                )
            layers += [ResidualBlock(width) for _ in range(config.encoder_blocks)]
        super().__init__(*layers, nn.SiLU(), nn.Conv2d(widths[-1], config.code_dim, 1))


class Decoder(nn.Sequential):
    """Decodes vectors (B, D, h, w) to what the likelihood needs, (B, n*C, h*f, w*f); without
    layers, the identity, beside such an encoder.

    Its last layer gives all pixels under a place of the finest stage at once. Where that stage
    stands at 1/4 of the resolution, each of 4x4 pixels has weights of its own, and what they do not
    agree on shows as a lattice in even areas; at 1/2, hardly.
    """

    def __init__(self, config: TokenizerConfig) -> None:
        if config.is_pixels:
            super().__init__()
            return
        stages = config.decoder_stages
        layers: list[nn.Module] = [nn.Conv2d(config.code_dim, stages[-1][0], 3, padding=1)]
        for stage in reversed(range(len(stages))):
            width, depth = stages[stage]
            layers += [ResidualBlock(width) for _ in range(depth)]
            if stage:
                finer = stages[stage - 1][0]
                widen = (
                    Upsample(width, finer)
                    if config.shortcut
                    else nn.Conv2d(width, 4 * finer, 3, padding=1)
                )
                layers += [widen, nn.PixelShuffle(2)]
        fold = config.downsample // 2 ** (len(stages) - 1)
        last = nn.Conv2d(stages[0][0], losses.output_channels(config) * fold**2, 3, padding=1)
        super().__init__(*layers, nn.SiLU(), last, nn.PixelShuffle(fold))


AnyEncoder = Encoder | vqgan.Encoder  # and those of any other network in the registry
AnyDecoder = Decoder | vqgan.Decoder


class VQVAE(nn.Module):
    """Joins encoder, quantizer, decoder and likelihood."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        network = NETWORKS[config.network].load()
        self.encoder: AnyEncoder = network.Encoder(config)
        self.quantizer = quantizers.build_quantizer(config)
        self.decoder: AnyDecoder = network.Decoder(config)
        self.likelihood = losses.build_likelihood(config)
        if hasattr(self.encoder, "use_codes"):
            self.encoder.use_codes(self.quantizer)  # type: ignore[operator]
        self.encoder_frozen = False

    def freeze_encoder(self) -> None:
        """Leaves only the decoder to learn: encoder and codebook stay as they are, in training too.

        After it, a step's codebook update is not to be called.
        """
        self.encoder_frozen = True
        for part in (self.encoder, self.quantizer):
            part.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.encoder_frozen:
            self.quantizer.eval()  # in training mode it counts what it sees
        return self

    def forward(self, images: Tensor, depths: Tensor | None = None) -> VQVAEOutput:
        """Reconstructs images (B, C, H, W) in [-1, 1], H and W multiples of f; depths (B,) are
        `Quantizer.draw_depths`', where it gives any.
        """
        z = self.encoder(images)
        quantized: Quantized = self.quantizer(z) if depths is None else self.quantizer(z, depths)
        output = self.decoder(quantized.vectors).float()
        loss = self.likelihood(output, images) + quantized.loss
        return VQVAEOutput(self.likelihood.mean(output), quantized.indices, loss)

    def encode(self, images: Tensor) -> Tensor:
        """Encodes images (B, C, H, W) in [-1, 1] to indices (B, L, h, w); f divides H and W."""
        return self.quantizer(self.encoder(images)).indices

    def decode(self, indices: Tensor) -> Tensor:
        """Returns images (B, C, h*f, w*f) in [-1, 1] from indices (B, L, h, w), or from those of
        the first few levels.
        """
        return self.likelihood.mean(self.decoder(self.quantizer.lookup(indices)).float())

    def nll(self, images: Tensor) -> Tensor:
        """Computes -log p(x | z_q) of images (B, C, H, W) in [-1, 1], (B,) in nats per image: what
        their indices leave to be said.
        """
        output = self.decoder(self.quantizer(self.encoder(images)).vectors)
        return self.likelihood.nats(output.float(), images).sum((1, 2, 3))

    def release_state(self) -> dict[str, Tensor]:
        """Returns the tensors that encoding and decoding need, without the training state of the
        quantizer.
        """
        return {name: value for name, value in self.state_dict().items() if ".average." not in name}
