"""VQModel of diffusers: the names of its tensors, its config.json, and export as such files.

Source: github.com/huggingface/diffusers, src/diffusers/models/autoencoders/vq_model.py and vae.py,
models/unets/unet_2d_blocks.py.
"""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from vqtok import files
from vqtok.codec import build_tokenizer
from vqtok.config import TokenizerConfig
from vqtok.config.registry import setting_of
from vqtok.errors import FormatError, InputError, ModelError
from vqtok.interop.export import Exported
from vqtok.interop.folders import STEM
from vqtok.interop.layout import CODEBOOK, SHARED, Layout
from vqtok.losses.likelihood import Likelihood, build_likelihood
from vqtok.model_registry import ModelFolder
from vqtok.weights import Weights, to_safetensors

CONFIG = "config.json"
CONFIG_LIMIT = 1 << 20  # bytes; one of theirs has some 700
# before its release 0.15
_OLD = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def _modern_name(name: str) -> str:
    """Returns the name that diffusers gives a tensor today: attention had other names once."""
    return re.sub(
        r"(?<=\.attentions\.)(\d+)\.(query|key|value|proj_attn)\.",
        lambda m: f"{m[1]}.{_OLD[m[2]]}.",
        name,
    )


def _read_groups(folder: Path) -> int:
    """Reads the number of groups of the normalization from the config in a model's folder.

    InputError, FormatError: none, damaged, or of another network.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise InputError(
            f"{folder} holds no {CONFIG}, which a VQModel of diffusers comes with",
            "put it beside the weights",
        )
    try:
        values = json.loads(files.read_bytes(path, CONFIG_LIMIT))
        activation, norm, count = (
            values.get(*pair)
            for pair in (("act_fn", "silu"), ("norm_type", "group"), ("norm_num_groups", 32))
        )
    except (ValueError, RecursionError, AttributeError):  # UnicodeDecodeError is a ValueError
        raise FormatError(f"{path} is damaged", "copy or download it again") from None
    if activation not in ("silu", "swish") or norm != "group":
        other = f"act_fn {str(activation)[:40]!r}, norm_type {str(norm)[:40]!r}"
        raise FormatError(
            f"{path} asks for {other}", "vqtok reads VQModels with silu and group normalization"
        )
    if type(count) is not int:
        raise FormatError(
            f"{path}: norm_num_groups is {str(count)[:40]!r}", "copy or download it again"
        )
    return count


LAYOUT = Layout(
    name="diffusers VQModel",
    mark="encoder.down_blocks.",
    parts=SHARED
    | {
        "encoder.stages.#.blocks.#": "encoder.down_blocks.#.resnets.#",
        "encoder.stages.#.attention.#": "encoder.down_blocks.#.attentions.#",
        "encoder.stages.#.resample": "encoder.down_blocks.#.downsamplers.0.conv",
        "encoder.middle.before": "encoder.mid_block.resnets.0",
        "encoder.middle.attention": "encoder.mid_block.attentions.0",
        "encoder.middle.after": "encoder.mid_block.resnets.1",
        "encoder.norm": "encoder.conv_norm_out",
        "decoder.middle.before": "decoder.mid_block.resnets.0",
        "decoder.middle.attention": "decoder.mid_block.attentions.0",
        "decoder.middle.after": "decoder.mid_block.resnets.1",
        "decoder.stages.#.blocks.#": "decoder.up_blocks.#.resnets.#",
        "decoder.stages.#.attention.#": "decoder.up_blocks.#.attentions.#",
        "decoder.stages.#.resample": "decoder.up_blocks.#.upsamplers.0.conv",
        "decoder.norm": "decoder.conv_norm_out",
    },
    block={"shortcut": "conv_shortcut"},
    attention={
        "norm": "group_norm",
        "query": "to_q",
        "key": "to_k",
        "value": "to_v",
        "out": "to_out.0",
    },
    rename=_modern_name,
    groups=_read_groups,
)


def _config_of(settings: TokenizerConfig) -> dict[str, Any]:
    """Returns the config.json of a classic network."""
    count = len(settings.stages)
    attends = [i in settings.attention for i in range(count)]
    return {
        "_class_name": "VQModel",
        "act_fn": "silu",
        "block_out_channels": list(settings.stages),
        "down_block_types": [f"{'Attn' * attend}DownEncoderBlock2D" for attend in attends],
        "in_channels": settings.channels,
        "latent_channels": settings.z_channels,
        "layers_per_block": settings.encoder_blocks,
        "lookup_from_codebook": True,  # else `decode` takes vectors alone
        "mid_block_add_attention": count in settings.attention,
        "norm_num_groups": settings.groups,
        "norm_type": "group",
        "num_vq_embeddings": settings.codebook_size,
        "out_channels": settings.channels,
        "sample_size": 256,
        "up_block_types": [f"{'Attn' * attend}UpDecoderBlock2D" for attend in reversed(attends)],
        "vq_embed_dim": settings.code_dim,
    }


def to_vqmodel(stored: Weights, settings: TokenizerConfig, folder: ModelFolder) -> Exported:
    """Makes the files of a VQModel; an `interop.export.Exporter`."""
    _check(settings, folder.name)
    build_tokenizer(stored, folder.tokenizer)
    tensors = {
        LAYOUT.theirs(ours, len(settings.stages)): value
        for ours, value in stored.tensors.items()
        if not ours.startswith("likelihood.")
    }
    if settings.normalize:
        codebook = LAYOUT.parts[CODEBOOK]
        tensors[codebook] = unit_codes(tensors[codebook])
    text = json.dumps(_config_of(settings), indent=2) + "\n"
    contents = {
        f"{STEM}.safetensors": to_safetensors(tensors, {"format": "pt"}),
        CONFIG: text.encode(),
    }
    return Exported("VQModel", contents, len(tensors))


def _check(settings: TokenizerConfig, name: str) -> None:
    if settings.network != "classic":
        folds = settings.network == "folded"
        lacking = (
            "layers that fold pixels into channels" if folds else f"{settings.network} network"
        )
        raise ModelError(
            f"the model {name} cannot be a VQModel of diffusers, which has no {lacking}",
            "export a model with the classic network: one that vqtok import made",
        )
    other = []
    if settings.quantizer not in ("vq", "ema"):  # others have no codebook of vectors, or none alone
        other.append(f"the quantizer {settings.quantizer}")
    if type(build_likelihood(settings)).mean is not Likelihood.mean:
        other.append(f"the likelihood {settings.likelihood}")  # the decoder's output is no image
    if settings.levels > 1:
        other.append("several levels")
    if settings.input_mean:
        other.append("pixels in another range than -1:1")
    if setting_of(settings, "middle_blocks") != 2:
        other.append("other than two blocks in the middle")
    if settings.distance != "l2":
        other.append("codes of the largest inner product")
    if settings.decoder_blocks != settings.encoder_blocks + 1:
        other.append("more decoder blocks than one past the encoder's")
    if other:
        raise ModelError(
            f"the model {name} cannot be a VQModel of diffusers, which has no {other[0]}",
            "export an imported model",
        )


def unit_codes(codebook: np.ndarray) -> np.ndarray:
    """Scales the entries to length 1, float32 (K, D); VQModel, which normalizes nothing, then
    chooses the same codes and decodes the same vectors.

    |z - e|^2 = |z|^2 - 2 z.e + 1 is smallest where z.e is largest, whatever the length of z.
    """
    wide = codebook.astype(np.float32)
    return wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)
