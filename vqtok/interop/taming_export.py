"""Models as checkpoints of taming-transformers: the tensors of its VQModel, and their config."""

from typing import Any

import numpy as np

from vqtok.codec import build_tokenizer
from vqtok.config import TokenizerConfig
from vqtok.config.registry import setting_of
from vqtok.errors import ModelError
from vqtok.interop.diffusers import unit_codes
from vqtok.interop.export import Exported
from vqtok.interop.layout import CODEBOOK
from vqtok.interop.taming import LAYOUT
from vqtok.losses.likelihood import Likelihood, build_likelihood
from vqtok.model_registry import ModelFolder
from vqtok.weights import Weights, to_safetensors

WEIGHTS, CONFIG = "model.safetensors", "config.yaml"
GROUPS = 32  # fixed in its code
_PROJECTIONS = ("query", "key", "value", "out")


def to_taming(stored: Weights, settings: TokenizerConfig, folder: ModelFolder) -> Exported:
    """Makes model.safetensors and config.yaml of a VQModel; an `interop.export.Exporter`."""
    lacking = _lacking(settings)
    if lacking:
        raise ModelError(
            f"the model {folder.name} cannot be a VQModel of taming-transformers, which {lacking}",
            "export a model that vqtok import made of a VQGAN, or export it --to onnx",
        )
    build_tokenizer(stored, folder.tokenizer)
    tensors = {
        LAYOUT.theirs(ours, len(settings.stages)): _theirs(ours, value)
        for ours, value in stored.tensors.items()
        if not ours.startswith("likelihood.")
    }
    if settings.normalize:
        name = LAYOUT.parts[CODEBOOK]
        tensors[name] = unit_codes(tensors[name])
    contents = {
        WEIGHTS: to_safetensors(tensors, {"format": "pt"}),
        CONFIG: _config_text(settings).encode(),
    }
    return Exported("VQModel", contents, len(tensors))


def _theirs(ours: str, value: np.ndarray) -> np.ndarray:
    """Linear layers of the attention are 1x1 convolutions there."""
    layer = ours.rpartition(".")[0].rpartition(".")[2]
    convolution = layer in _PROJECTIONS and value.ndim == 2
    return value[:, :, None, None] if convolution else value


def _lacking(settings: TokenizerConfig) -> str:
    """What the program has no room for; "" where it has room for all."""
    if settings.network != "classic":
        return f"has no {settings.network} network"
    if settings.quantizer not in ("vq", "ema"):
        return f"has no quantizer {settings.quantizer}"
    if settings.levels > 1:
        return "has no several levels"
    if type(build_likelihood(settings)).mean is not Likelihood.mean:
        return f"has no likelihood {settings.likelihood}"
    if settings.input_mean:
        return "takes pixels in -1:1, and this one in another range"
    if settings.groups != GROUPS:
        return f"normalizes in {GROUPS} groups, and this one in {settings.groups}"
    if setting_of(settings, "middle_blocks") != 2 or len(settings.stages) not in settings.attention:
        return "has two blocks with attention between them in the middle"
    if settings.decoder_blocks != settings.encoder_blocks + 1:
        return "has one block more in the decoder's stages than in the encoder's"
    if any(channels % settings.stages[0] for channels in settings.stages):
        return "has stages whose channels are multiples of the first one's"
    return ""


def _config_text(settings: TokenizerConfig) -> str:
    """The YAML that its scripts read. Where codes are chosen by inner products, SEED-Voken's IBQ
    has this network.
    """
    resolution, width = 256, settings.stages[0]
    dot = settings.distance == "dot"
    target = "src.IBQ.models.ibqgan.VQModel" if dot else "taming.models.vqgan.VQModel"
    attends = [resolution >> i for i in range(len(settings.stages)) if i in settings.attention]
    network: dict[str, Any] = {
        "double_z": False,
        "z_channels": settings.z_channels,
        "resolution": resolution,
        "in_channels": settings.channels,
        "out_ch": settings.channels,
        "ch": width,
        "ch_mult": [channels // width for channels in settings.stages],
        "num_res_blocks": settings.encoder_blocks,
        "attn_resolutions": attends,
        "dropout": 0.0,
    }
    lines = [
        "model:",
        f"  target: {target}",
        "  params:",
        f"    embed_dim: {settings.code_dim}",
        f"    n_embed: {settings.codebook_size}",
        "    ddconfig:",
        *(f"      {name}: {str(value).lower()}" for name, value in network.items()),
        "    lossconfig:",
        f"      target: {'src.IBQ' if dot else 'taming'}.modules.losses.vqperceptual.DummyLoss",
    ]
    return "\n".join(lines) + "\n"
