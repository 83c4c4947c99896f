"""Images to tokens and back.

>>> import vqtok
>>> model = vqtok.load("photo")
>>> codes = model.encode("photo.jpg")
>>> image = model.decode(codes)
"""

from typing import TYPE_CHECKING, Any

from vqtok._version import __version__

__all__ = [
    "Codes",
    "CodesDataset",
    "Model",
    "VqtokError",
    "__version__",
    "load",
    "read_codes",
    "write_codes",
]

if TYPE_CHECKING:
    from pathlib import Path

    from vqtok.bulk import CodesDataset
    from vqtok.codec import Model, load
    from vqtok.codes import Codes
    from vqtok.codes import write_codes as write_codes
    from vqtok.errors import VqtokError

_HOMES = {
    "Codes": ("vqtok.codes", "Codes"),
    "CodesDataset": ("vqtok.bulk", "CodesDataset"),
    "Model": ("vqtok.codec", "Model"),
    "VqtokError": ("vqtok.errors", "VqtokError"),
    "load": ("vqtok.codec", "load"),
    "write_codes": ("vqtok.codes", "write_codes"),
}


def read_codes(source: "Path | str | bytes", model: str | None = None) -> "Codes":
    """The codes in a file of either form, or in the bytes of one.

    Raises InputError, FormatError, ModelError.

    Compact files that a prior coded need that prior, and torch:
    of the model that the file names, or of `model`, a name or path.
    """
    from vqtok import codes

    found = codes.read_any_codes(source)
    if isinstance(found, codes.Codes):
        return found
    if found.prior is None:
        return codes.read_plain_codes(source)
    from vqtok.codec import unpack

    return unpack(found, model)


def __getattr__(name: str) -> Any:
    """Imports on first use: `vqtok --help` and reading a codes file start
    without torch (2 to 5 s).
    """
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module 'vqtok' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    return getattr(import_module(module), attribute)
