"""Converts tokenizers of taming-transformers, LlamaGen and diffusers to models, and models back.

Each program has a module with the names of its tensors and an entry in `convert.LAYOUTS`; each
format of export has a function and an entry in `config.registry`. Nothing of a file is executed.
"""

from vqtok.interop.convert import Imported, convert_checkpoint
from vqtok.interop.export import export_model
from vqtok.interop.options import ImportOptions, Trial
from vqtok.interop.read import Checkpoint, read_checkpoint

__all__ = [
    "Checkpoint",
    "ImportOptions",
    "Imported",
    "Trial",
    "convert_checkpoint",
    "export_model",
    "read_checkpoint",
]
