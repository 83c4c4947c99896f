"""A model of vqtok as the files of another program's: diffusers' VQModel."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.numpy

from vqtok import config, files, model_registry, weights
from vqtok.codec import build_tokenizer
from vqtok.config import TokenizerConfig
from vqtok.errors import ModelError
from vqtok.interop import diffusers, layout

_LIKELIHOODS = ("mse", "l1", "charbonnier", "logistic")  # what the decoder gives is the image
_QUANTIZERS = ("vq", "ema")


@dataclass(frozen=True)
class Exported:
    """Files of a diffusers model."""

    config: bytes
    tensors: bytes
    count: int  # of tensors

    def write(self, folder: Path, force: bool) -> None:
        """Writes them into a folder, made if missing.

        OutputError where one exists, unless `force`.
        """
        targets = {f"{diffusers.STEM}.safetensors": self.tensors, diffusers.CONFIG: self.config}
        for name in targets:
            files.check_free(folder / name, force)
        for name, data in targets.items():
            files.write_bytes(folder / name, data, force)


def export_model(folder: model_registry.ModelFolder) -> Exported:
    """The tokenizer of a model as a VQModel of diffusers.

    ModelError where that has no layers for it. Errors as `weights.load_weights`.
    """
    stored = weights.load_weights(folder.tokenizer, "tokenizer")
    settings = config.from_dict(TokenizerConfig, stored.config, str(folder.tokenizer))
    _check(settings, folder.name)
    build_tokenizer(stored, folder.tokenizer)  # that the tensors are those of the config
    tensors = {
        diffusers.LAYOUT.theirs(name, len(settings.stages)): value
        for name, value in stored.tensors.items()
        if not name.startswith("likelihood.")
    }
    if settings.normalize:
        codebook = diffusers.LAYOUT.parts[layout.CODEBOOK]
        tensors[codebook] = _unit(tensors[codebook])
    text = json.dumps(diffusers.config_of(settings), indent=2) + "\n"
    return Exported(text.encode(), safetensors.numpy.save(tensors, {"format": "pt"}), len(tensors))


def _check(settings: TokenizerConfig, name: str) -> None:
    if settings.network != "classic":
        raise ModelError(
            f"the model {name} cannot be a VQModel of diffusers, "
            "which has no layers that fold pixels into channels",
            "export a model with the classic network: one that vqtok import made",
        )
    other = [
        f"the {kind} {value}"
        for kind, value, known in (
            ("quantizer", settings.quantizer, _QUANTIZERS),
            ("likelihood", settings.likelihood, _LIKELIHOODS),
        )
        if value not in known
    ]
    other += ["several levels"] if settings.levels > 1 else []
    other += (
        ["more decoder blocks than one past the encoder's"]
        if settings.decoder_blocks != settings.encoder_blocks + 1
        else []
    )
    if other:
        raise ModelError(
            f"the model {name} cannot be a VQModel of diffusers, which has no {other[0]}",
            "export an imported model",
        )


def _unit(codebook: np.ndarray) -> np.ndarray:
    """Entries on the unit sphere, float32 (K, D):
    nearest to a vector is then the one nearest to the vector's direction.

    |z - e|^2 = |z|^2 - 2 z.e + 1, whose smallest is the largest z.e whatever the length of z:
    VQModel, which normalizes nothing, chooses the same codes and decodes the same vectors.
    """
    wide = codebook.astype(np.float32)
    return wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)
