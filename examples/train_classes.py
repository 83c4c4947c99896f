"""Trains a class-conditional transformer on exported tokens: python train_classes.py DIR STEPS

DIR is what `vqtok export CODES -o DIR --to bin --class-tokens --offset` wrote.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

folder, steps, dim = Path(sys.argv[1]), int(sys.argv[2]), 128
meta = json.loads((folder / "meta.json").read_text())
T, V = meta["exports"]["tokens"]["length"], meta["vocabulary_size"]  # the class, then the grid
data = np.memmap(folder / "tokens.bin", meta["exports"]["tokens"]["dtype"], "r").reshape(-1, T)
token, place, head = nn.Embedding(V, dim), nn.Embedding(T, dim), nn.Linear(dim, V)
layer = nn.TransformerEncoderLayer(dim, 4, 4 * dim, 0.0, "gelu", batch_first=True, norm_first=True)
blocks = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
optimizer = torch.optim.AdamW(nn.ModuleList([token, place, head, blocks]).parameters(), 3e-4)


def logits(tokens):  # (B, n) -> (B, n, V): what comes after each token
    n = tokens.shape[1]
    mask = nn.Transformer.generate_square_subsequent_mask(n)
    return head(blocks(token(tokens) + place.weight[:n], mask, is_causal=True))


for step in range(steps):
    batch = torch.from_numpy(data[np.random.randint(len(data), size=16)].astype(np.int64))
    loss = nn.functional.cross_entropy(logits(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 100 == 0:
        print(f"step {step}: {loss.item() / np.log(2):.2f} bits per token")

drawn = meta["class_start"] + torch.arange(meta["classes"])[:, None]  # one image of each class
while drawn.shape[1] < T:
    scores = logits(drawn)[:, -1].detach()
    n, (h, w) = drawn.shape[1] - 1, meta["exports"]["tokens"]["grid"]
    level = n % meta["levels"] if meta["order"] == "raster" else n // (h * w)
    start = meta["level_starts"][level]
    allowed = scores[:, start : start + meta["codebook_size"]].softmax(-1)
    drawn = torch.cat([drawn, start + torch.multinomial(allowed, 1)], 1)
np.save(folder / "drawn.npy", drawn.numpy())  # vqtok import-tokens DIR/drawn.npy -o drawn.npz
