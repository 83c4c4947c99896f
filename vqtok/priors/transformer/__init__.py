"""The causal transformer: its network, the block it is made of, and the
cache that samples from it.
"""

from vqtok.priors.transformer.network import Transformer

__all__ = ["Transformer"]
