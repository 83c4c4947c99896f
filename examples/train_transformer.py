"""A small causal transformer on vqtok codes, in plain torch: python train_transformer.py CODES OUT.png STEPS"""
import sys

import numpy as np
import torch
from PIL import Image
from torch import nn

import vqtok

S, width, layers = 8, 256, 4                                    # S x S places of a grid are one sentence
data = vqtok.CodesDataset(sys.argv[1])
K, L = data.manifest.codebook_size, data.manifest.levels
grids = [grid for grid, name in data if min(grid.shape[1:]) >= S]                       # each (L, h, w)
level = torch.arange(S * S * L) % L * K                         # each level has tokens of its own; L * K stands before the first
token, place, head = nn.Embedding(L * K + 1, width), nn.Embedding(S * S * L, width), nn.Linear(width, K)
block = nn.TransformerEncoderLayer(width, 4, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
blocks = nn.TransformerEncoder(block, layers, enable_nested_tensor=False)
optimizer = torch.optim.AdamW(nn.ModuleList([token, place, head, blocks]).parameters(), 3e-4)

def logits(indices):                                            # (B, n) -> (B, n, K): each place sees those before it
    n = indices.shape[1]
    before = nn.functional.pad(indices + level[:n], (1, -1), value=L * K)
    mask = nn.Transformer.generate_square_subsequent_mask(n)
    return head(blocks(token(before) + place.weight[:n], mask, is_causal=True))

def window(grid):                                               # a random part: row by row, the levels of a place one by one
    y, x = (np.random.randint(side - S + 1) for side in grid.shape[1:])
    return grid[:, y : y + S, x : x + S].transpose(1, 2, 0).flatten()

for step in range(int(sys.argv[3])):
    batch = torch.from_numpy(np.stack([window(grids[i]) for i in np.random.randint(len(grids), size=16)]))
    loss = nn.functional.cross_entropy(logits(batch).flatten(0, 1), batch.flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 100 == 0:
        print(f"step {step}: {loss.item() / np.log(2):.2f} bits an index")

new = torch.zeros(8, S * S * L, dtype=torch.int64)              # eight pictures that never were
for n in range(S * S * L):
    new[:, n] = torch.multinomial(logits(new[:, : n + 1])[:, n].detach().softmax(-1), 1)[:, 0]
model = vqtok.load(data.manifest.model)
pictures = model.decode_all(model.codes(new.view(8, S, S, L).permute(0, 3, 1, 2)))
Image.fromarray(np.hstack(pictures)).save(sys.argv[2])
