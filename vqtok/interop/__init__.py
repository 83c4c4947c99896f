"""Tokenizers of other programs to model folders, and back:
taming-transformers, LlamaGen and diffusers.

Each source has a module with the names of its tensors; `convert` and `export` know no source by
name but diffusers, whose files also hold a config. Nothing of a file is ever executed.
"""

from vqtok.interop.convert import convert
from vqtok.interop.export import export
from vqtok.interop.read import Checkpoint, read

__all__ = ["Checkpoint", "convert", "export", "read"]
