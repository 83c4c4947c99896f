"""Encodes an image, and decodes it at every rate: python roundtrip.py IMAGE"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

import vqtok

path = Path(sys.argv[1])
model = vqtok.load()  # VQTOK_MODEL, or else photo
codes = model.encode(path)  # codes.indices: (1, L, h, w)
vqtok.write_codes(path.with_suffix(".npz"), model.pack(codes), force=True)
again = vqtok.read_codes(path.with_suffix(".npz"))
assert again == codes  # a compact file is lossless
original = np.asarray(Image.open(path).convert("RGB"), np.float64)
for levels in range(1, codes.levels + 1):
    decoded = model.decode(again, levels)  # uint8 (H, W, 3), the size of the original
    psnr = 10 * np.log10(255**2 / np.mean((original - decoded) ** 2))
    bits = again.first_levels(levels).bits / again.pixels
    print(f"{levels} of {codes.levels} levels: {bits:.3f} bits per pixel, {psnr:.2f} dB")
    Image.fromarray(decoded).save(path.with_suffix(f".{levels}.png"))
