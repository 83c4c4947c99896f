"""Writes a static page that decodes codes files of one model in a browser, and with its encoder
makes them of images: no server, no network.

The page is `index.html`, and the model beside it in scripts (`model-00.js`, ...), each of which
hands base64 to the page: scripts alone are loaded from file:// and from a server alike, so that
the page works where it lies. `*.mjs` are modules for Node as they are; the page has them joined.
"""

import base64
import hashlib
import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save

from vqtok import codec, files, int8, model_registry, weights
from vqtok.errors import ModelError
from vqtok.quantizers import Quantizer
from vqtok.quantizers.codebook import Codebook
from vqtok.quantizers.finite import FSQuantizer, LFQuantizer
from vqtok.quantizers.pixels import PixelQuantizer
from vqtok.quantizers.residual import LevelQuantizer

# each after those it needs
MODULES = (
    *("errors", "zip", "codes", "write", "weights", "prior", "kernels", "layers", "network"),
    *("encoder", "worker"),
)
SCRIPTS = ("page", "photo")
CHUNK = 768 * 1024  # bytes of the model in a script: a step of its progress
_FOLDER = Path(__file__).parent
_IMPORT = re.compile(r"^import .*?;\n", re.MULTILINE | re.DOTALL)
_EXPORT = re.compile(r"^export (?=async |function |class |const |let )", re.MULTILINE)


@dataclass(frozen=True)
class Site:
    """Holds the files of a page, by name."""

    model: str
    contents: dict[str, bytes]

    @property
    def bytes(self) -> int:
        return sum(map(len, self.contents.values()))

    def write(self, folder: Path, force: bool) -> None:
        """Writes the files into a folder, made if missing; OutputError where one exists, unless
        `force`.
        """
        files.write_all(folder, self.contents, force)


def make_site(folder: model_registry.ModelFolder, encoder: bool = False) -> Site:
    """Makes the page of a model: it decodes codes files, and with the encoder encodes images.

    Raises ModelError where no browser decodes it, FormatError.
    """
    model = decoder_weights(folder)
    prior = folder.entropy.read_bytes() if folder.entropy else b""
    parts = [*_chunks("model", model), *_chunks("prior", prior)]
    if encoder:
        parts += _chunks("encoder", encoder_weights(folder))
    contents = {f"model-{i:02d}.js": script for i, script in enumerate(parts)}
    page = (_FOLDER / "page.html").read_text("utf-8")
    sizes = [len(script) for script in contents.values()]
    for mark, value in {
        "STYLE": (_FOLDER / "page.css").read_text("utf-8"),
        "WORKER": bundle(MODULES),
        "SCRIPT": "\n".join((_FOLDER / f"{name}.js").read_text("utf-8") for name in SCRIPTS),
        "KERNELS": base64.b64encode((_FOLDER / "kernels.wasm").read_bytes()).decode(),
        "ENCODER": json.dumps(encoder),
        "SCRIPTS": json.dumps(dict(zip(contents, sizes, strict=True))),
    }.items():
        page = page.replace(f"/*{mark}*/", value)
    contents = {"index.html": page.encode(), **contents}
    return Site(folder.name, {**contents, "offline.js": _offline(contents)})


def _offline(contents: dict[str, bytes]) -> bytes:
    """Writes the service worker that keeps these files; its cache is named after their content."""
    total = hashlib.sha256(b"".join(contents.values())).hexdigest()[:16]
    text = (_FOLDER / "offline.js").read_text("utf-8")
    text = text.replace("/*NAME*/", f"vqtok-{total}").replace("/*FILES*/", json.dumps([*contents]))
    return text.encode()


def bundle(names: tuple[str, ...]) -> str:
    """Joins modules into one script; no two of them may define the same top-level name."""
    texts = ((_FOLDER / f"{name}.mjs").read_text("utf-8") for name in names)
    return "\n".join(_EXPORT.sub("", _IMPORT.sub("", text)) for text in texts)


def decoder_weights(folder: model_registry.ModelFolder) -> bytes:
    """Returns what a page decodes with, as safetensors: the decoder as stored (int8 with steps, or
    float16), `codebooks` (L, K, D), `depth` (L, D), and as metadata config, name and fingerprint.
    """
    stored = weights.load_weights(folder.tokenizer, "tokenizer")
    if stored.config.get("network", "folded") != "folded":
        raise ModelError(
            f"the page decodes the folded network, and {folder.name} has the "
            f"{stored.config['network']} one",
            f"use vqtok decode, or: vqtok export {shlex.quote(str(folder.path))} --to onnx -o onnx",
        )
    network = codec.load_tokenizer(folder.tokenizer)
    tensors = _stored(stored.tensors, "decoder.")
    with torch.inference_mode():
        tensors |= _codebooks(network.quantizer)
    fingerprint = weights.codes_fingerprint(stored)
    # checked, too: that it is this tokenizer's
    prior = codec.EntropyCoder(folder, fingerprint).fingerprint if folder.entropy else None
    record = {
        "config": stored.config,
        "name": folder.name,
        "fingerprint": fingerprint,
        "prior": prior,
    }
    return _saved(tensors, record)


def encoder_weights(folder: model_registry.ModelFolder) -> bytes:
    """Returns what a page encodes with beside `decoder_weights`: the encoder as stored, and where
    numbers are rounded one by one, the layers (L, d, D) that give them; as metadata `sizes`, how
    many values each takes.
    """
    stored = weights.load_weights(folder.tokenizer, "tokenizer")
    quantizer = codec.load_tokenizer(folder.tokenizer).quantizer
    levels = list(quantizer.quantizers) if isinstance(quantizer, LevelQuantizer) else [quantizer]
    tensors, sizes = _stored(stored.tensors, "encoder."), ()
    scalars = [level for level in levels if isinstance(level, FSQuantizer | LFQuantizer)]
    if scalars:
        sizes = scalars[0].sizes
        for part in ("weight", "bias"):
            each = [level.inward.get_parameter(part).detach().numpy() for level in scalars]
            tensors[f"inward.{part}"] = _narrow(np.stack(each))
    elif not all(isinstance(level, Codebook | PixelQuantizer) for level in levels):
        kind = stored.config["quantizer"]
        raise ModelError(
            f"the page has no encoder for the quantizer {kind} of {folder.name}",
            "leave --encoder out: it decodes",
        )
    return _saved(tensors, {"sizes": sizes})


def _stored(tensors: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """Returns the tensors of a part: int8 with steps where they were rounded so."""
    found = {name: value for name, value in tensors.items() if name.startswith(prefix)}
    for name in [name for name in found if name.endswith(".weight")]:
        try:
            found = int8.pack(found, [name])
        except ValueError:  # not rounded to int8: float16 as it is
            continue
    return found


def _saved(tensors: dict[str, np.ndarray], record: dict[str, Any]) -> bytes:
    meta = {"vqtok": json.dumps(record, sort_keys=True)}
    return save({name: np.ascontiguousarray(value) for name, value in tensors.items()}, meta)


def _codebooks(quantizer: Quantizer) -> dict[str, np.ndarray]:
    if isinstance(quantizer, PixelQuantizer):
        return {"codebooks": quantizer.palette.numpy()}
    entries = quantizer.codebooks().detach().numpy()
    depth = np.zeros((entries.shape[0], entries.shape[2]), np.float32)
    if isinstance(quantizer, LevelQuantizer):
        depth = quantizer.depth.detach().numpy()
    return {"codebooks": _narrow(entries), "depth": _narrow(depth)}


def _narrow(values: np.ndarray) -> np.ndarray:
    """Converts a tensor to float16 where that loses nothing."""
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    return half if np.array_equal(half.astype(np.float32), values) else values


def _chunks(name: str, data: bytes) -> list[bytes]:
    starts = range(0, len(data), CHUNK)
    parts = (base64.b64encode(data[start : start + CHUNK]).decode() for start in starts)
    return [f'vqtok.receive("{name}", "{part}");\n'.encode() for part in parts]
