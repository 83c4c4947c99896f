"""Measures a model on images: distortion, codebook use and bits, by level, and beside JPEG, WebP
and AVIF.
"""

from vqtok.evaluate.baseline_coders import TITLES
from vqtok.evaluate.measure import View, evaluate, evaluate_codes
from vqtok.evaluate.reference_codecs import CODECS
from vqtok.evaluate.results import CodecRow, Evaluation, LevelRow

__all__ = [
    "CODECS",
    "TITLES",
    "CodecRow",
    "Evaluation",
    "LevelRow",
    "View",
    "evaluate",
    "evaluate_codes",
]
