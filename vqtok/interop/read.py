"""The tensors of a checkpoint file of another program, by name. Nothing in the file is executed."""

import re
import zipfile
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqtok import files, weights
from vqtok.errors import FormatError
from vqtok.interop import folders

# where the tensors stand, the better ones first: LlamaGen's two, and taming's
_INNER = ("ema", "model", "state_dict", "model_state_dict", "net", "weights")
_MEMBERS_MAX = 200_000
_LIGHTNING = ("pytorch_lightning", "lightning.pytorch")
# Classes that checkpoints of PyTorch Lightning, taming's among them, name as keys of their
# callbacks' state. Empty ones stand in for them.
_CALLBACKS = {
    "model_checkpoint": "ModelCheckpoint",
    "early_stopping": "EarlyStopping",
    "lr_monitor": "LearningRateMonitor",
    "progress.tqdm_progress": "TQDMProgressBar",
    "timer": "Timer",
}
_FLOATS = (torch.float32, torch.float16, torch.float64, torch.bfloat16)
_COPY_AGAIN = "copy or download the file again"
_SAVE_SAFELY = (
    "on a machine that may run it: import torch, safetensors.torch as s; "
    "s.save_file(torch.load(FILE, weights_only=False)['state_dict'], "
    "'model.safetensors'); then import that file"
)


@dataclass(frozen=True)
class Checkpoint:
    """A file's tensors under the names that it gives them."""

    path: Path
    tensors: dict[str, np.ndarray]
    taken: str = ""  # the key of the file that they stand under, where there were several


def read_checkpoint(path: Path, part: str | None = None) -> Checkpoint:
    """Reads a checkpoint that torch.save wrote, a safetensors file, an index of several, or the one
    in a folder: of a diffusers model or pipeline, or with a single checkpoint in it.

    `part` names the weights to take where a file holds several, like ema or model.

    InputError: not there, or not readable.
    FormatError: damaged, not of these kinds, or made of more than tensors.
    """
    path = folders.find_weights(path) if path.is_dir() else path
    if folders.is_index(path):
        return _from_several(path)
    folders.check_whole(path)
    return _read_file(path, part)


def _from_several(index: Path) -> Checkpoint:
    """Reads the tensors of all files that an index names."""
    tensors: dict[str, np.ndarray] = {}
    for name, wanted in folders.read_index(index).items():
        found = _read_file(index.parent / name).tensors
        for tensor in wanted:
            if tensor not in found:
                raise FormatError(
                    f"{index} puts the tensor {tensor[:100]} in {name}, which lacks it", _COPY_AGAIN
                )
            tensors[tensor] = found[tensor]
    return Checkpoint(index, tensors)


def _read_file(path: Path, part: str | None = None) -> Checkpoint:
    with files.open_input(path) as file:
        start = file.read(9)
    if start[:2] == b"PK":
        return _torch_tensors(path, part)
    if start[8:] == b"{":
        return Checkpoint(path, weights.read_tensors(path))
    if start[:1] == b"\x80":
        raise FormatError(
            f"{path} is a bare pickle, as torch wrote before its release 1.6", _SAVE_SAFELY
        )
    raise FormatError(
        f"{path} is no checkpoint",
        "give a file that torch.save wrote, a .safetensors file, or the folder of a VQModel",
    )


def _torch_tensors(path: Path, part: str | None) -> Checkpoint:
    """Finds the tensors in what torch.save wrote: in the dictionary itself, or in the one that it
    holds for them.
    """
    _check_zip(path)
    try:
        with _stand_ins():
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        # UnpicklingError, RuntimeError, KeyError, IndexError, struct.error...:
        # by what the bytes hold
        raise _refused(path, str(error)) from None
    inner = _inner(loaded)
    taken = part if part in inner else next(iter(inner), "")
    loaded = inner.get(taken, loaded)
    tensors = (
        {name: value for name, value in loaded.items() if isinstance(name, str)}
        if isinstance(loaded, Mapping)
        else {}
    )
    arrays = _arrays(
        path, {name: value for name, value in tensors.items() if isinstance(value, Tensor)}
    )
    return Checkpoint(path, arrays, taken if len(inner) > 1 else "")


def _inner(loaded: Any) -> dict[str, Mapping]:
    """Lists the dictionaries of tensors in what was loaded, the better ones first."""
    if not isinstance(loaded, Mapping):
        return {}
    found = {
        name: value
        for name, value in loaded.items()
        if isinstance(name, str)
        and isinstance(value, Mapping)
        and any(isinstance(tensor, Tensor) for tensor in value.values())
    }
    first = [name for name in _INNER if name in found]
    rest = [name for name in found if name not in _INNER]
    # beside tensors of its own, a file's other dictionaries are no weights
    flat = any(isinstance(value, Tensor) for value in loaded.values())
    return {name: found[name] for name in first + ([] if flat or first else rest)}


def _stand_ins() -> AbstractContextManager:
    """Lets the loader put an empty class in the place of each callback's;
    before torch 2.5 such files are refused.
    """
    allow = getattr(torch.serialization, "safe_globals", None)
    names = [
        (f"{package}.callbacks.{module}", name)
        for package in _LIGHTNING
        for module, name in _CALLBACKS.items()
    ]
    names.append(("argparse", "Namespace"))  # the options of a training run, LlamaGen's among them
    return (
        nullcontext()
        if allow is None
        else allow([type(name, (), {"__module__": module}) for module, name in names])
    )


def _refused(path: Path, reason: str) -> FormatError:
    name = re.search(r"GLOBAL ([\w.]+)", reason)
    if name:
        return FormatError(
            f"{path} holds more than tensors ({name[1][:80]}): "
            "to read that would run code of the file's",
            _SAVE_SAFELY,
        )
    first = " ".join(reason.split())[:100]
    return FormatError(f"{path} is damaged, or not made by torch.save ({first})", _COPY_AGAIN)


def _check_zip(path: Path) -> None:
    """Raises FormatError where the zip is damaged, or could grow: torch stores its members as they
    are.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, OverflowError) as error:
        raise FormatError(f"{path} is damaged or truncated ({error})", _COPY_AGAIN) from None
    if any("/code/" in member.filename for member in members):
        raise FormatError(
            f"{path} is a TorchScript program, not a file of tensors, as Cosmos' .jit files are",
            "vqtok runs no code of a file's. Encode with its own program; vqtok packs its tokens: "
            "vqtok train TOKENS.npy --stage entropy, then vqtok pack",
        )
    stored = all(
        member.compress_type == zipfile.ZIP_STORED and member.file_size == member.compress_size
        for member in members
    )
    if (
        not stored
        or len(members) > _MEMBERS_MAX
        or sum(member.file_size for member in members) > path.stat().st_size
    ):
        raise FormatError(
            f"{path} is a zip file, but not one that torch.save wrote",
            "give a checkpoint as its program saved it",
        )


def _arrays(path: Path, tensors: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Converts dense floating-point tensors to arrays, bfloat16 to float32; leaves out others.

    FormatError where they share one memory.
    """
    dense = {
        name: t
        for name, t in tensors.items()
        if t.layout is torch.strided and t.dtype in _FLOATS and t.device.type == "cpu"
    }
    # A step of 0 makes much of little. One layer under several names (MishaLaskin's blocks) counts
    # once: its tensors are one memory.
    once = {(t.data_ptr(), tuple(t.shape), t.stride()): t for t in dense.values()}
    if sum(t.numel() * t.element_size() for t in once.values()) > path.stat().st_size:
        raise FormatError(f"{path} holds tensors that are larger than the file", _COPY_AGAIN)
    return {
        name: (t.float() if t.dtype == torch.bfloat16 else t).detach().numpy()
        for name, t in dense.items()
    }
