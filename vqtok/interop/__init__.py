"""Tokenizers of other programs to model folders, and back:
taming-transformers, LlamaGen and diffusers.

Each source has a module with the names of its tensors; `convert` and `export` know no source by
name but diffusers, whose files also hold a config. Nothing of a file is ever executed.
"""

from vqtok.interop.convert import convert_checkpoint
from vqtok.interop.export import export_model
from vqtok.interop.read import Checkpoint, read_checkpoint

__all__ = ["Checkpoint", "convert_checkpoint", "export_model", "read_checkpoint"]
