"""Finds images that look alike by their codes alone: python look_alikes.py CODES NAME [COUNT]"""

import sys

import numpy as np

import vqtok

data = vqtok.CodesDataset(sys.argv[1])
K = data.manifest.codebook_size
names, uses = [], []
for indices, name in data:  # indices: int64 (L, h, w)
    counts = np.bincount(indices[0].ravel(), minlength=K)  # level 1
    names.append(name)
    uses.append(np.sqrt(counts / counts.sum()))
table = np.stack(uses)  # (N, K)
asked = next(i for i, name in enumerate(names) if sys.argv[2] in name)
alike = table @ table[asked]  # Bhattacharyya: 1 for equal histograms
count = int(sys.argv[3]) if len(sys.argv) > 3 else 5
for i in np.argsort(-alike)[:count]:
    print(f"{alike[i]:.3f}  {names[i]}")
