"""Images to tokens and back.

>>> import vqtok
>>> model = vqtok.load("photo")
>>> codes = model.encode("photo.jpg")
>>> image = model.decode(codes)
"""

from typing import TYPE_CHECKING

from vqtok._version import __version__
from vqtok.lazy import lazy_names

if TYPE_CHECKING:
    from pathlib import Path

    from vqtok.bulk import CodesDataset
    from vqtok.codec import Model, load
    from vqtok.codes import Codes, write_codes
    from vqtok.errors import VqtokError

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


def read_codes(source: "Path | str | bytes", model: str | None = None) -> "Codes":
    """Reads the codes in a file of either form, or in the bytes of one.

    Compact files that a prior coded need that prior, and torch: the one of the model that the
    file names, or of `model`, a name or path. Raises InputError, FormatError, ModelError.
    """
    from vqtok import codes

    found = codes.read_any_codes(source)
    if isinstance(found, codes.Codes) or found.prior is None:
        with codes.name_in_errors("codes" if isinstance(source, bytes) else source):
            return codes.unpack(found)
    from vqtok.codec import find_coder

    return codes.unpack(found, lambda packed: find_coder(packed, model))


# Imported on first use: reading a codes file starts without torch, which takes 2 to 5 s.
if not TYPE_CHECKING:  # type checkers would take every name for one that is here
    __getattr__, __dir__ = lazy_names(
        __name__,
        __all__,
        bulk="CodesDataset",
        codec="Model load",
        codes="Codes write_codes",
        errors="VqtokError",
    )
