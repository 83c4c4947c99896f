"""Finds the weights in the folder of another program's model.

`save_pretrained` of diffusers and transformers writes one file, or several and an index of them
(`max_shard_size`), with the name of a variant (fp16, ema) in each name where one was asked for. A
pipeline is a folder of such folders, and model_index.json says what each holds.
"""

import json
import re
from pathlib import Path
from typing import Any

from vqtok import files
from vqtok.errors import FormatError, InputError

STEM = "diffusion_pytorch_model"
PIPELINE = "model_index.json"
_STEMS = (STEM, "model", "pytorch_model")  # of diffusers and of transformers
_INDEX = re.compile(r"(.+)\.(?:safetensors|bin)\.index(?:\.(\w+))?\.json")
_SHARD = re.compile(r".+-\d{5}-of-(\d{5})(?:\.\w+)?\.(?:safetensors|bin)")
_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
_JSON_LIMIT = 16 << 20  # bytes; an index has some 100 for each tensor
_COPY_AGAIN = "copy or download it again"


def is_index(path: Path) -> bool:
    """Whether a file is named like an index of several files of weights."""
    return _INDEX.fullmatch(path.name) is not None


def find_weights(folder: Path) -> Path:
    """Finds the file of weights in a folder, or the index of several.

    Weights without a variant come before those with one, safetensors before others; of a pipeline
    it is the VQModel's. InputError where there is none, or where several could be meant.
    """
    if (folder / PIPELINE).is_file():
        folder = folder / _component(folder / PIPELINE)
    try:
        names = sorted(path.name for path in folder.iterdir() if path.is_file())
    except OSError as error:
        raise InputError(
            f"cannot look into {folder}: {error.strerror}", "check its name and its rights"
        ) from None
    for stem in _STEMS:
        for name in (f"{stem}.safetensors", f"{stem}.safetensors.index.json"):
            if name in names:
                return folder / name
        for name in (f"{stem}.bin", f"{stem}.bin.index.json"):
            if name in names:
                return folder / name
    indexes = [name for name in names if _INDEX.fullmatch(name)]
    single = [name for name in names if name.endswith(_SUFFIXES) and not _is_shard(name)]
    # of one variant in both formats, as `save_pretrained` and a conversion leave it
    chosen = _without_twins(indexes + single)
    if len(chosen) == 1:
        return folder / chosen[0]
    if chosen:
        shown = ", ".join(chosen[:5]) + (", ..." if len(chosen) > 5 else "")
        raise InputError(f"{folder} holds several checkpoints: {shown}", "give one of these files")
    if any(map(_is_shard, names)):
        raise InputError(
            f"{folder} holds parts of a checkpoint, but not their index (.index.json)",
            "download the index, too",
        )
    raise InputError(
        f"{folder} holds no {STEM}.safetensors or other checkpoint ({' '.join(_SUFFIXES)})",
        "give the checkpoint's file, or the folder of a diffusers VQModel",
    )


def read_index(path: Path) -> dict[str, list[str]]:
    """Reads an index: the names of the tensors by the name of the file that holds them, beside it.

    InputError where a file is missing, FormatError where the index is damaged.
    """
    table = _read_json(path).get("weight_map")
    if not isinstance(table, dict) or not table:
        raise FormatError(f"{path} lists no tensors", _COPY_AGAIN)
    found: dict[str, list[str]] = {}
    for tensor, name in table.items():
        # a plain name: nothing outside the folder is read
        if not isinstance(name, str) or not name.endswith(_SUFFIXES) or Path(name).name != name:
            raise FormatError(f"{path} names the file {str(name)[:80]!r}", _COPY_AGAIN)
        found.setdefault(name, []).append(tensor)
    for name in found:
        if not (path.parent / name).is_file():
            raise InputError(
                f"{path} names {name}, which is not beside it", "download all parts into one folder"
            )
    return found


def check_whole(path: Path) -> None:
    """Raises InputError where a file is one part of several."""
    if _is_shard(path.name):
        raise InputError(
            f"{path} is one part of a checkpoint in several files",
            f"give the folder, which holds them and their index: {path.parent}",
        )


def _is_shard(name: str) -> bool:
    match = _SHARD.fullmatch(name)
    return match is not None and int(match[1]) > 1


def _without_twins(names: list[str]) -> list[str]:
    """Leaves out the .bin of a name that is there as .safetensors, too."""
    return [
        name
        for name in names
        if ".bin" not in name or name.replace(".bin", ".safetensors") not in names
    ]


def _component(index: Path) -> str:
    """Finds the folder of a pipeline's VQModel. Raises InputError where it has none."""
    parts = {
        name: str(value[1])
        for name, value in _read_json(index).items()
        if isinstance(value, list) and len(value) == 2 and value[1] and re.fullmatch(r"\w+", name)
    }
    chosen = [name for name, kind in parts.items() if kind == "VQModel"]
    if len(chosen) == 1:
        return chosen[0]
    shown = ", ".join(f"{name} ({kind})" for name, kind in parts.items())[:200] or "nothing"
    raise InputError(
        f"{index.parent} is a pipeline with {len(chosen) or 'no'} VQModel: it holds {shown}",
        "give the folder of a VQModel" if chosen else "vqtok imports vector quantizers only",
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(files.read_bytes(path, _JSON_LIMIT))
    except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
        values = None
    if not isinstance(values, dict):
        raise FormatError(f"{path} is damaged", _COPY_AGAIN)
    return values
