"""Converts codes to token sequences, for training code of any kind, and back.

`layout` says which id is where, `sources` where grids come from, `reader` and `sequences` read
them as sequences, `stream`
feeds them to torch, `export` writes them in a format of `formats`, `restore` reads a trainer's
sequences back. Only `stream` needs torch.
"""

from typing import TYPE_CHECKING, Any

from vqtok.tokens.export import ExportRequest, export_tokens
from vqtok.tokens.layout import ORDERS, Layout, Vocabulary
from vqtok.tokens.restore import read_meta, restore
from vqtok.tokens.sequences import Sequences, check_grid
from vqtok.tokens.sources import CodesFiles, Origin

if TYPE_CHECKING:
    from vqtok.tokens.stream import TokenStream, collate

__all__ = [
    "ORDERS",
    "CodesFiles",
    "ExportRequest",
    "Layout",
    "Origin",
    "Sequences",
    "TokenStream",
    "Vocabulary",
    "check_grid",
    "collate",
    "export_tokens",
    "read_meta",
    "restore",
]

if not TYPE_CHECKING:  # type checkers would take every name for one that is here

    def __getattr__(name: str) -> Any:
        if name not in ("TokenStream", "collate"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from vqtok.tokens import stream

        return getattr(stream, name)
