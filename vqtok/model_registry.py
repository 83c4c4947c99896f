"""Models, found by name, by path, or by the fingerprint that a codes file holds."""

import difflib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vqtok.errors import ModelError, VqtokError
from vqtok.prefetch import run_in_thread
from vqtok.weights import SUFFIX, Packed, Weights, codes_fingerprint, load_packed

DEFAULT_MODEL = "photo"
# of `vqtok sample`: of the bundled models the one whose samples are recognized best
DEFAULT_SAMPLED = "fashion"


@dataclass(frozen=True)
class ModelFolder:
    """A model on disk. path is its folder, or a single tokenizer file that has no prior."""

    name: str
    path: Path

    @property
    def tokenizer(self) -> Path:
        return self.path if self.path.suffix == SUFFIX else self.path / f"tokenizer{SUFFIX}"

    @property
    def prior(self) -> Path | None:
        return self._part(f"prior{SUFFIX}")

    @property
    def entropy(self) -> Path | None:
        """Returns the integer prior that compact files are coded with."""
        return self._part(f"entropy{SUFFIX}")

    def _part(self, name: str) -> Path | None:
        path = self.path / name
        return path if os.path.isfile(path) else None


def bundled_models() -> Path:
    """Returns the folder of the models that come with vqtok: inside the package in a wheel, beside
    it in a checkout.
    """
    package = Path(__file__).resolve().parent
    inside = package / "models"
    return inside if inside.is_dir() else package.parent / "models"


def search_path() -> list[Path]:
    """Returns the folders that hold models, first to last: those in VQTOK_MODELS, then the bundled
    one.
    """
    entries = os.environ.get("VQTOK_MODELS", "").split(os.pathsep)
    return [Path(os.path.expanduser(entry)) for entry in entries if entry] + [bundled_models()]


def list_models() -> list[ModelFolder]:
    """Lists all models in the search path, by name; of two with one name, the first found."""
    found: dict[str, ModelFolder] = {}
    for model in _all_models():
        found.setdefault(model.name, model)
    return [found[name] for name in sorted(found)]


def find_model(name_or_path: str | None = None, default: str = DEFAULT_MODEL) -> ModelFolder:
    """Finds the model of that name in the search path, or else at that path; None means
    VQTOK_MODEL, or the default.

    A path is that of a model folder or of a .safetensors file.
    ModelError where there is no such model.
    """
    wanted = name_or_path or os.environ.get("VQTOK_MODEL") or default
    known = {model.name: model for model in list_models()}
    if wanted in known:
        return known[wanted]
    path = Path(os.path.expanduser(wanted))  # Path.expanduser raises on "~nobody"
    model = _at(path)
    if model is None:
        what = (
            f"{wanted} holds no tokenizer{SUFFIX}"
            if os.path.exists(path)
            else f"there is no model {wanted!r}"
        )
        raise ModelError(what, _suggest(wanted, list(known)))
    return model


class StoredTokenizer:
    """The content of a model's tokenizer file, read once.

    A thread unpacks and hashes it: who needs no fingerprint yet can go on with what is `packed`.
    """

    def __init__(self, folder: ModelFolder, packed: Packed) -> None:
        self.folder, self.packed = folder, packed
        self._unpacked = run_in_thread(lambda: _unpack(packed), leave=True)

    @property
    def stored(self) -> Weights:
        return self._unpacked.result()[0]

    @property
    def fingerprint(self) -> str:
        return self._unpacked.result()[1]


def _unpack(packed: Packed) -> tuple[Weights, str]:
    stored = packed.unpack()
    return stored, codes_fingerprint(stored)


def read_tokenizer(folder: ModelFolder) -> StoredTokenizer:
    """Reads the tokenizer of a model. Raises the errors of `load_weights`."""
    return StoredTokenizer(folder, load_packed(folder.tokenizer, "tokenizer"))


def read_named(name: str) -> StoredTokenizer | None:
    """Reads the tokenizer of the first model of that name, where that can be read; None elsewhere.

    The name is compared with names, never used as a path.
    """
    folder = next((model for model in _all_models() if model.name == name), None)
    try:
        return None if folder is None else read_tokenizer(folder)
    except VqtokError:
        return None


def find_by_fingerprint(name: str, fingerprint: str) -> ModelFolder:
    """Finds the model that a codes file names.

    ModelError where no model in the search path has that tokenizer.
    """
    return read_by_fingerprint(name, fingerprint).folder


def read_by_fingerprint(name: str, fingerprint: str) -> StoredTokenizer:
    """Reads the tokenizer that a codes file names. Raises ModelError where no model in the search
    path has it.

    The name comes from a file that may be hostile: it is compared with names, never used as a path.
    """
    here = None
    # models of that name first
    for model in sorted(_all_models(), key=lambda model: model.name != name):
        try:
            tokenizer = read_tokenizer(model)
            found = tokenizer.fingerprint
            if found == fingerprint:
                return tokenizer
        except VqtokError:  # one damaged model must not hide the others
            found = "damaged"
        if model.name == name:
            here = here or found
    state = f"the model {name} here is {here}" if here else "no model here has that fingerprint"
    raise ModelError(
        f"the codes were made with model {name} ({fingerprint}); {state}",
        "load it by the path of its folder, or put it in a folder that VQTOK_MODELS names",
        "give its folder with --model, or put it in a folder that VQTOK_MODELS names",
    )


def _all_models() -> Iterator[ModelFolder]:
    """Models in the order of the search path; an entry may hold models or be one."""
    for entry in search_path():
        try:
            paths = [entry, *sorted(entry.iterdir())]
        except OSError:  # gone, or not ours to read: the other entries still count
            continue
        # a loose file is a model only for those who name it
        for path in filter(os.path.isdir, paths):
            model = _at(path)
            if model is not None:
                yield model


def _at(path: Path) -> ModelFolder | None:
    """Returns the model at a folder, or at a .safetensors file; None where there is none."""
    if path.name == f"tokenizer{SUFFIX}":
        path = path.parent
    single = path.suffix == SUFFIX
    # Path.is_file raises where a folder refuses
    if not os.path.isfile(path if single else path / f"tokenizer{SUFFIX}"):
        return None
    name = path.stem if single else path.resolve().name
    return ModelFolder("".join(c if c.isprintable() else "_" for c in name), path)


def _suggest(wanted: str, known: list[str]) -> str:
    near = difflib.get_close_matches(wanted, known, n=1)
    if near:
        return f"did you mean {near[0]}?"
    return (
        f"choose one of {', '.join(known)}, or give the path of a model folder"
        if known
        else "give the path of a model folder"
    )
