"""Trains a small transformer on vqtok codes: python train_transformer.py CODES OUT.png STEPS"""

import sys

import numpy as np
import torch
from PIL import Image
from torch import nn

import vqtok

S, dim, layers = 8, 256, 4  # S x S places of a grid are one sequence
data = vqtok.CodesDataset(sys.argv[1])
K, L = data.manifest.codebook_size, data.manifest.levels
grids = [grid for grid, name in data if min(grid.shape[1:]) >= S]  # each (L, h, w)
level = torch.arange(S * S * L) % L * K  # own tokens for each level; L * K: start
token, place, head = nn.Embedding(L * K + 1, dim), nn.Embedding(S * S * L, dim), nn.Linear(dim, K)
block = nn.TransformerEncoderLayer(dim, 4, 4 * dim, 0.0, "gelu", batch_first=True, norm_first=True)
blocks = nn.TransformerEncoder(block, layers, enable_nested_tensor=False)
optimizer = torch.optim.AdamW(nn.ModuleList([token, place, head, blocks]).parameters(), 3e-4)


def logits(indices):  # (B, n) -> (B, n, K): each token sees those before it
    n = indices.shape[1]
    before = nn.functional.pad(indices + level[:n], (1, -1), value=L * K)
    mask = nn.Transformer.generate_square_subsequent_mask(n)
    return head(blocks(token(before) + place.weight[:n], mask, is_causal=True))


def window(grid):  # a random crop, row by row, levels of a place in turn
    y, x = (np.random.randint(side - S + 1) for side in grid.shape[1:])
    return grid[:, y : y + S, x : x + S].transpose(1, 2, 0).flatten()


for step in range(int(sys.argv[3])):
    chosen = np.random.randint(len(grids), size=16)
    batch = torch.from_numpy(np.stack([window(grids[i]) for i in chosen]))
    loss = nn.functional.cross_entropy(logits(batch).flatten(0, 1), batch.flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 100 == 0:
        print(f"step {step}: {loss.item() / np.log(2):.2f} bits per index")

new = torch.zeros(8, S * S * L, dtype=torch.int64)  # eight new images
for n in range(S * S * L):
    new[:, n] = torch.multinomial(logits(new[:, : n + 1])[:, n].detach().softmax(-1), 1)[:, 0]
model = vqtok.load(data.manifest.model)
images = model.decode_all(model.codes(new.view(8, S, S, L).permute(0, 3, 1, 2)))
Image.fromarray(np.hstack(images)).save(sys.argv[2])
