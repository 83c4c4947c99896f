#!/usr/bin/env bash
# pillow-heif 1.8.1 (Pillow 13.0.0): `quality=-1`, which its manual calls lossless, changes colors by up to
# 207 of 255.
#
# Chroma is halved in both directions all the same (4:2:0 is the default). `chroma=444` leaves an error of 1, from the
# colors' conversion; `chroma=444, matrix_coefficients=0` has none. 16-bit gray images lose their lowest bits, too.
# vqtok writes no HEIF; it compares codecs by their lossy settings.
#
# Output seen, 2026-11, Python 3.11; source: own runs:
#     {} error over 100
#     {'chroma': 444} error 1
#     {'chroma': 444, 'matrix_coefficients': 0} error 0
#     16 bits [0, 1000, 40000, 65535] read [0, 960, 40000, 65472]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "pillow-heif==1.8.1" "pillow==13.0.0" "numpy==2.4.6"
cat > "$folder/show.py" <<'PY'
import io

import numpy as np
import pillow_heif
from PIL import Image

pillow_heif.register_heif_opener()


def read_back(image, **options):
    data = io.BytesIO()
    image.save(data, "HEIF", quality=-1, **options)
    return np.asarray(Image.open(data))


colors = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
for options in ({}, {"chroma": 444}, {"chroma": 444, "matrix_coefficients": 0}):
    error = np.abs(read_back(Image.fromarray(colors), **options).astype(int) - colors).max()
    print(options, "error", "over 100" if error > 100 else error)
deep = np.array([[0, 1000, 40_000, 65_535]] * 4, np.uint16)
print("16 bits", deep[0].tolist(), "read", read_back(Image.fromarray(deep))[0].tolist())
PY
cd "$folder"
venv/bin/python show.py 2> log | tee seen
diff seen - <<'SEEN'
{} error over 100
{'chroma': 444} error 1
{'chroma': 444, 'matrix_coefficients': 0} error 0
16 bits [0, 1000, 40000, 65535] read [0, 960, 40000, 65472]
SEEN
