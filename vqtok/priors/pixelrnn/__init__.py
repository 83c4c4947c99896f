"""The PixelRNN: a network with the memory of an LSTM from row to row, what it
computes, and how it is sampled.
"""

from vqtok.priors.pixelrnn.network import PixelRNN

__all__ = ["PixelRNN"]
