"""Measures a model on images: distortion, codebook use and bits, by level, and beside JPEG, WebP
and AVIF; and the samples of its prior.
"""

from vqtok.evaluate.baseline_coders import TITLES
from vqtok.evaluate.measure import View, evaluate, evaluate_codes
from vqtok.evaluate.reference_codecs import CODECS
from vqtok.evaluate.results import CodecRow, Evaluation, LevelRow
from vqtok.evaluate.samples import SampleScores, Shown, measure_samples, train_judge

__all__ = [
    "CODECS",
    "TITLES",
    "CodecRow",
    "Evaluation",
    "LevelRow",
    "SampleScores",
    "Shown",
    "View",
    "evaluate",
    "evaluate_codes",
    "measure_samples",
    "train_judge",
]
