"""How good a model is on pictures: distortion, codebook use, and bits;
by level, and beside JPEG, WebP and AVIF.
"""

from vqtok.evaluate.codecs import CODECS, title
from vqtok.evaluate.coders import TITLES
from vqtok.evaluate.figures import CodecRow, Evaluation, LevelRow
from vqtok.evaluate.measure import View, evaluate

__all__ = ["CODECS", "TITLES", "CodecRow", "Evaluation", "LevelRow", "View", "evaluate", "title"]
