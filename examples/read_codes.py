"""Prints what a plain codes file holds, with NumPy alone: python read_codes.py CODES.npz"""

import json
import sys

import numpy as np

with np.load(sys.argv[1], allow_pickle=False) as file:
    indices, meta = file["indices"], json.loads(str(file["meta"]))
n, L, h, w = indices.shape
K = meta["codebook_size"]
model = f"model {meta['model']} ({meta['fingerprint']}), f = {meta['downsample']}"
print(f"{n} x {h}x{w}x{L} indices below {K} ({indices.dtype}), by {model}")
for level in range(L):
    counts = np.bincount(indices[:, level].ravel(), minlength=K)
    p = counts[counts > 0] / counts.sum()
    entropy = -(p * np.log2(p)).sum()
    bits = f"{entropy:.2f} of {np.log2(K):.2f} bits per index"
    print(f"level {level + 1}: {len(p)} codes in use, {bits}, most often code {counts.argmax()}")
