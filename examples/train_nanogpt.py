"""Trains a transformer on windows of a flat file, as nanoGPT does: train_nanogpt.py DIR STEPS

DIR is what `vqtok export CODES -o DIR --to bin --bos` wrote.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

folder, steps, dim = Path(sys.argv[1]), int(sys.argv[2]), 128
meta = json.loads((folder / "meta.json").read_text())
name, facts = next(iter(meta["exports"].items()))
T, V = facts["length"], meta["vocabulary_size"]  # BOS, then the grid
flat = np.memmap(folder / f"{name}.bin", facts["dtype"], "r")  # all images, end to end


def windows(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens (count, T) that begin anywhere in the file, and those that follow each of them."""
    starts = torch.randint(len(flat) - T, (count, 1))
    tokens = torch.from_numpy(flat[(starts + torch.arange(T + 1)).numpy()].astype(np.int64))
    return tokens[:, :-1], tokens[:, 1:]


token, place, head = nn.Embedding(V, dim), nn.Embedding(T, dim), nn.Linear(dim, V)
layer = nn.TransformerEncoderLayer(dim, 4, 4 * dim, 0.0, "gelu", batch_first=True, norm_first=True)
blocks = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
optimizer = torch.optim.AdamW(nn.ModuleList([token, place, head, blocks]).parameters(), 3e-4)
mask = nn.Transformer.generate_square_subsequent_mask(T)
for step in range(steps):
    tokens, following = windows(16)
    scores = head(blocks(token(tokens) + place.weight, mask, is_causal=True))  # (16, T, V)
    loss = nn.functional.cross_entropy(scores.flatten(0, 1), following.flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 100 == 0:
        print(f"step {step}: {loss.item() / np.log(2):.2f} bits per token")
