"""A block of the transformer: attention and a small network, each added to what goes
through (pre-norm, as in GPT-2).
"""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqtok.config import PriorConfig
from vqtok.priors.dropout import drop
from vqtok.priors.transformer.rotary import rotate

# tokens up to which attention is in float32 on a CPU:
# torch 2.13's bfloat16 gradient took 19 ms at 64 tokens, float32's 2.5
SHORT = 256


class Block(nn.Module):
    """x + attention(norm(x)), and that + mlp(norm(that))."""

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        C = config.width
        self.heads, self.dropout = config.heads, config.dropout
        self.attention_norm, self.mlp_norm = nn.LayerNorm(C), nn.LayerNorm(C)
        self.qkv = nn.Linear(C, 3 * C, bias=False)
        self.merge = nn.Linear(C, C, bias=False)
        self.up = nn.Linear(C, 4 * C, bias=False)
        self.down = nn.Linear(4 * C, C, bias=False)
        for layer in (self.qkv, self.up):
            nn.init.normal_(layer.weight, std=C**-0.5)
        # 2 * layers of them are added up (Radford et al. 2019, section 2.3)
        for layer in (self.merge, self.down):
            nn.init.normal_(layer.weight, std=(layer.in_features * 2 * config.layers) ** -0.5)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """(N, T, C) -> (N, T, C): token t sees the tokens up to t.

        Cosines and sines as `rotary.turns` gives them.
        """
        N, T, C = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(N, T, 3, self.heads, C // self.heads)
        x = self._add(x, self.merge(attention(qkv, cos, sin).reshape(N, T, C)))
        return self._add(x, self.down(F.gelu(self.up(self.mlp_norm(x)))))

    def _add(self, x: Tensor, change: Tensor) -> Tensor:
        return x + (drop(change, self.dropout) if self.training and self.dropout else change)


def attention(qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """(N, T, heads, D) of queries, keys and values (N, T, 3, heads, D):
    causal, without a mask tensor or dropout, for the flash kernel.
    """
    short = qkv.device.type == "cpu" and qkv.shape[1] <= SHORT
    with torch.autocast("cpu", enabled=False) if short else nullcontext():
        # (N, heads, T, D), views
        q, k, v = rotate(qkv.float() if short else qkv, cos, sin).transpose(1, 3).unbind(2)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
