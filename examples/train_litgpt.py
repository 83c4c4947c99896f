"""Trains a transformer on litdata's chunks, as litgpt reads them: train_litgpt.py DIR STEPS

DIR is what `vqtok export CODES -o DIR --to litdata --class-tokens --offset` wrote.
"""

import json
import sys
from pathlib import Path

import torch
from litdata import (  # pyright: ignore[reportMissingImports]
    StreamingDataLoader,
    StreamingDataset,
    TokensLoader,
)
from torch import nn

folder, steps, dim = Path(sys.argv[1]), int(sys.argv[2]), 128
meta = json.loads((folder / "meta.json").read_text())
facts, V = next(iter(meta["exports"].values())), meta["vocabulary_size"]
T = facts["block"]  # the class, then the grid: litdata cuts its chunks into such blocks
blocks_of_tokens = TokensLoader(block_size=T)
data = StreamingDataset(input_dir=str(folder), item_loader=blocks_of_tokens, shuffle=True)
loader = StreamingDataLoader(data, batch_size=16, num_workers=0)

token, place, head = nn.Embedding(V, dim), nn.Embedding(T - 1, dim), nn.Linear(dim, V)
layer = nn.TransformerEncoderLayer(dim, 4, 4 * dim, 0.0, "gelu", batch_first=True, norm_first=True)
blocks = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
optimizer = torch.optim.AdamW(nn.ModuleList([token, place, head, blocks]).parameters(), 3e-4)
mask = nn.Transformer.generate_square_subsequent_mask(T - 1)
step = 0
while step < steps:
    for batch in loader:  # (16, T); each epoch in another order
        tokens, following = batch[:, :-1].long(), batch[:, 1:].long()
        scores = head(blocks(token(tokens) + place.weight, mask, is_causal=True))
        loss = nn.functional.cross_entropy(scores.flatten(0, 1), following.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 0:
            print(f"step {step}: {loss.item() / 0.6931:.2f} bits per token")
        step += 1
        if step == steps:
            break
