"""Random checkpoints with the VQ-VAE paper's network under the names of several programs, and what
their networks make of an image: written out from the shapes of their tensors.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

C, R, D, K = 16, 8, 12, 24  # channels, channels inside a block, code dimension, codes


@dataclass
class Net:
    """Layers that draw their tensors under the names that they are called by."""

    tensors: dict[str, Tensor] = field(default_factory=OrderedDict)

    def get(self, name: str, *shape: int) -> Tensor:
        if name not in self.tensors:
            scale = 1.6 / max(1, torch.Size(shape[1:]).numel()) ** 0.5
            self.tensors[name] = torch.randn(shape) * (scale if len(shape) > 1 else 0.1)
        return self.tensors[name]

    def conv(
        self, x: Tensor, name: str, out: int, kernel: int, bias: bool = True, tf: bool = False
    ) -> Tensor:
        leaf = ("w", "b") if tf else ("weight", "bias")
        sep = "/" if tf else "."
        into = x.shape[1]
        shape = (kernel, kernel, into, out) if tf else (out, into, kernel, kernel)
        weight = self.get(f"{name}{sep}{leaf[0]}", *shape)
        weight = weight.permute(3, 2, 0, 1) if tf else weight
        b = self.get(f"{name}{sep}{leaf[1]}", out) if bias else None
        return F.conv2d(x, weight, b, 2 if kernel == 4 else 1, (kernel - 1) // 2)

    def up(self, x: Tensor, name: str, out: int, kernel: int = 4, tf: bool = False) -> Tensor:
        into, sep = x.shape[1], "/" if tf else "."
        leaf = ("w", "b") if tf else ("weight", "bias")
        shape = (kernel, kernel, out, into) if tf else (into, out, kernel, kernel)
        weight = self.get(f"{name}{sep}{leaf[0]}", *shape)
        weight = weight.permute(3, 2, 0, 1) if tf else weight
        b = self.get(f"{name}{sep}{leaf[1]}", out)
        return F.conv_transpose2d(x, weight, b, 2 if kernel == 4 else 1, 1)

    def norm(self, x: Tensor, name: str) -> Tensor:
        n = x.shape[1]
        if f"{name}.running_mean" not in self.tensors:
            self.tensors[f"{name}.weight"] = 1 + 0.2 * torch.randn(n)
            self.tensors[f"{name}.bias"] = 0.1 * torch.randn(n)
            self.tensors[f"{name}.running_mean"] = 0.2 * torch.randn(n)
            self.tensors[f"{name}.running_var"] = 0.5 + torch.rand(n)
            self.tensors[f"{name}.num_batches_tracked"] = torch.tensor(9)
        mean, variance = (self.tensors[f"{name}.{x}"] for x in ("running_mean", "running_var"))
        return F.batch_norm(
            x, mean, variance, self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"], False
        )


@dataclass
class Program:
    """One program's network and what its file does not say."""

    encoder: Callable[[Net, Tensor], Tensor]
    decoder: Callable[[Net, Tensor], Tensor]
    codebook: str
    rows: bool = True  # whether the codes are its rows
    variant: str = "inplace,relu,none"
    averages: tuple[str, ...] = ()


def stack(
    net: Net,
    x: Tensor,
    names: list[tuple[str, str]],
    inplace: bool = True,
    bias: bool = False,
    norm: bool = False,
    tf: bool = False,
) -> Tensor:
    """Residual blocks; `names` are those of their two convolutions."""
    for first, second in names:
        r = F.relu(x)
        y = net.conv(r, first, C if norm else R, 3, bias, tf)
        y = net.norm(y, first[:-1] + str(int(first[-1]) + 1)) if norm else y
        y = net.conv(F.relu(y), second, C, 1, bias, tf)
        y = net.norm(y, second[:-1] + str(int(second[-1]) + 1)) if norm else y
        x = (r if inplace else x) + y
    return x


def _zalando(prefix: str, blocks: str) -> list[tuple[str, str]]:
    return [(f"{prefix}.{blocks % i}.1", f"{prefix}.{blocks % i}.3") for i in range(2)]


def _notebook(side: str, up: str, pre: str, blocks: str, code: str, **more: object) -> Program:
    """zalandoresearch's layers under given names."""
    enc, dec = (side % "encoder"), (side % "decoder")

    def encode(net: Net, x: Tensor) -> Tensor:
        x = F.relu(net.conv(x, f"{enc}.{up % 'conv_1'}", C // 2, 4))
        x = F.relu(net.conv(x, f"{enc}.{up % 'conv_2'}", C, 4))
        x = net.conv(x, f"{enc}.{up % 'conv_3'}", C, 3)
        return net.conv(F.relu(stack(net, x, _zalando(enc, blocks))), pre, D, 1)

    def decode(net: Net, x: Tensor) -> Tensor:
        x = net.conv(x, f"{dec}.{up % 'conv_1'}", C, 3)
        x = F.relu(stack(net, x, _zalando(dec, blocks)))
        x = F.relu(net.up(x, f"{dec}.{up % 'conv_trans_1'}", C // 2))
        return net.up(x, f"{dec}.{up % 'conv_trans_2'}", 3)

    return Program(encode, decode, code, **more)  # type: ignore[arg-type]


def _misha() -> Program:
    def names(stem: str) -> list[tuple[str, str]]:
        return [(f"{stem}.stack.{i}.res_block.1", f"{stem}.stack.{i}.res_block.3") for i in (0, 1)]

    def encode(net: Net, x: Tensor) -> Tensor:
        s = "encoder.conv_stack"
        x = F.relu(net.conv(x, f"{s}.0", C // 2, 4))
        x = net.conv(F.relu(net.conv(x, f"{s}.2", C, 4)), f"{s}.4", C, 3)
        _share(net, names(f"{s}.5"), x)
        return net.conv(F.relu(stack(net, x, names(f"{s}.5"))), "pre_quantization_conv", D, 1)

    def decode(net: Net, x: Tensor) -> Tensor:
        s = "decoder.inverse_conv_stack"
        x = net.up(x, f"{s}.0", C, 3)
        _share(net, names(f"{s}.1"), x)
        x = F.relu(stack(net, x, names(f"{s}.1")))
        return net.up(F.relu(net.up(x, f"{s}.2", C // 2)), f"{s}.4", 3)

    return Program(encode, decode, "vector_quantization.embedding.weight")


def _share(net: Net, names: list[tuple[str, str]], x: Tensor) -> None:
    """All blocks are one layer under several names, and one memory in the file."""
    stack(net, x, names[:1])
    for a, b in zip(names[0], names[1], strict=True):
        net.tensors[f"{b}.weight"] = net.tensors[f"{a}.weight"]


def _ritheshkumar() -> Program:
    def encode(net: Net, x: Tensor) -> Tensor:
        x = F.relu(net.norm(net.conv(x, "encoder.0", C, 4), "encoder.1"))
        x = net.conv(x, "encoder.3", C, 4)
        names = [(f"encoder.{i}.block.1", f"encoder.{i}.block.4") for i in (4, 5)]
        return stack(net, x, names, bias=True, norm=True)

    def decode(net: Net, x: Tensor) -> Tensor:
        names = [(f"decoder.{i}.block.1", f"decoder.{i}.block.4") for i in (0, 1)]
        x = F.relu(stack(net, x, names, bias=True, norm=True))
        x = F.relu(net.norm(net.up(x, "decoder.3", C), "decoder.4"))
        return torch.tanh(net.up(x, "decoder.6", 3))

    return Program(encode, decode, "codebook.embedding.weight", variant="inplace,linear,tanh")


def _sonnet() -> Program:
    def names(side: str) -> list[tuple[str, str]]:
        s = f"{side}/residual_stack"
        return [(f"{s}/res3x3_{i}", f"{s}/res1x1_{i}") for i in range(2)]

    def encode(net: Net, x: Tensor) -> Tensor:
        x = F.relu(net.conv(x, "encoder/enc_1", C // 2, 4, tf=True))
        x = F.relu(net.conv(x, "encoder/enc_2", C, 4, tf=True))
        x = net.conv(x, "encoder/enc_3", C, 3, tf=True)
        x = F.relu(stack(net, x, names("encoder"), False, True, tf=True))
        return net.conv(x, "to_vq", D, 1, tf=True)

    def decode(net: Net, x: Tensor) -> Tensor:
        x = net.conv(x, "decoder/dec_1", C, 3, tf=True)
        x = F.relu(stack(net, x, names("decoder"), False, True, tf=True))
        x = F.relu(net.up(x, "decoder/dec_2", C // 2, tf=True))
        return net.up(x, "decoder/dec_3", 3, tf=True)

    return Program(encode, decode, "vector_quantizer/embeddings", False, "plain,relu,none")


def _issue() -> Program:
    """Names like those of the issue, f8, codes in columns, averages beside them."""

    def names(side: str) -> list[tuple[str, str]]:
        return [(f"{side}.residuals.{i}.net.1", f"{side}.residuals.{i}.net.3") for i in range(2)]

    def encode(net: Net, x: Tensor) -> Tensor:
        for i, out in ((0, C // 2), (2, C), (4, C)):
            x = F.relu(net.conv(x, f"encoder.conv.{i}", out, 4))
        x = net.conv(x, "encoder.conv.6", C, 3)
        x = F.relu(stack(net, x, names("encoder"), False, True))
        return net.conv(x, "conv_to_vq", D, 1)

    def decode(net: Net, x: Tensor) -> Tensor:
        x = F.relu(stack(net, net.conv(x, "decoder.conv", C, 3), names("decoder"), False, True))
        for i, out in ((0, C), (2, C // 2)):
            x = F.relu(net.up(x, f"decoder.tr_conv.{i}", out))
        return net.up(x, "decoder.tr_conv.4", 3)

    return Program(
        encode, decode, "vq.embeddings", False, "plain,relu,none", ("vq.ema_m", "vq.ema_N")
    )


PROGRAMS: dict[str, Callable[[], Program]] = {
    "zalando": lambda: _notebook(
        "_%s",
        "_%s",
        "_pre_vq_conv",
        "_residual_stack._layers.%d._block",
        "_vq_vae._embedding.weight",
        averages=("_vq_vae._ema_w", "_vq_vae._ema_cluster_size"),
    ),
    "copy": lambda: _notebook(
        "%s", "blocks.%s", "pre_vq", "blocks.residual.residual_%d.block", "codebook.weight"
    ),
    "misha": _misha,
    "ritheshkumar": _ritheshkumar,
    "sonnet": _sonnet,
    "issue": _issue,
}


@dataclass
class Made:
    """A checkpoint, and its network on images in the range that it takes."""

    program: Program
    net: Net

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Indices (h, w) of an image (1, 3, H, W)."""
        z = self.program.encoder(self.net, x)[0].permute(1, 2, 0)
        return (z[..., None, :] - self.codes()).square().sum(-1).argmin(-1)

    @torch.no_grad()
    def decode(self, indices: Tensor) -> Tensor:
        """The image (1, 3, H, W) of indices (h, w)."""
        return self.program.decoder(self.net, self.codes()[indices].permute(2, 0, 1)[None])

    def codes(self) -> Tensor:
        codebook = self.net.tensors[self.program.codebook]
        return codebook if self.program.rows else codebook.T


def make(name: str, seed: int = 0) -> Made:
    """A random checkpoint of a program; its codes are vectors that its encoder gives."""
    torch.manual_seed(seed)
    made = Made(PROGRAMS[name](), Net())
    with torch.no_grad():
        z = made.program.encoder(made.net, 2 * torch.rand(1, 3, 96, 96) - 1)
        vectors = z[0].flatten(1).T
        codes = vectors[torch.randperm(len(vectors))[:K]].clone()
        made.net.tensors[made.program.codebook] = codes if made.program.rows else codes.T.clone()
        made.decode(torch.zeros(2, 2, dtype=torch.int64))
    for average in made.program.averages:
        many = average.endswith(("_w", "_m"))
        made.net.tensors[average] = (
            made.net.tensors[made.program.codebook] + 1 if many else (torch.ones(K))
        )
    return made
