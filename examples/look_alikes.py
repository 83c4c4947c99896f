"""Which pictures of a folder of codes shards look alike, by their codes alone: python look_alikes.py CODES NAME [COUNT]"""
import sys

import numpy as np

import vqtok

data = vqtok.CodesDataset(sys.argv[1])
K = data.manifest.codebook_size
names, uses = [], []
for indices, name in data:                                      # indices: int64 (L, h, w)
    counts = np.bincount(indices[0].ravel(), minlength=K)       # the first level says the most
    names.append(name)
    uses.append(np.sqrt(counts / counts.sum()))
table = np.stack(uses)                                          # (N, K)
asked = next(i for i, name in enumerate(names) if sys.argv[2] in name)
alike = table @ table[asked]                                    # Bhattacharyya coefficient: 1 where codes are used equally often
for i in np.argsort(-alike)[: int(sys.argv[3]) if len(sys.argv) > 3 else 5]:
    print(f"{alike[i]:.3f}  {names[i]}")
