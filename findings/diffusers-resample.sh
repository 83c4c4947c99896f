#!/usr/bin/env bash
# diffusers 0.42.1: `VaeImageProcessor(resample="lanczos")` resizes Pillow images by Lanczos, but arrays and tensors by
# nearest pixels.
#
# `preprocess` with a height and a width applies the filter to Pillow images only. For an array or a tensor of the same
# image it calls `torch.nn.functional.interpolate` without a mode: every second pixel is dropped, and a fine
# checkerboard becomes white, where the image becomes gray. So it goes with all arrays and tensors whose sides are not
# multiples of 8. The docstring of `resample` names no exception (huggingface/diffusers, pull request 13500, open).
# vqtok resizes by one function, on pixels, whatever the image was (`images.resize_to`).
#
# Output seen, 2026-11, Python 3.11; source: own runs:
#     Pillow (1, 3, 32, 32) mean 0.0
#     array (1, 3, 32, 32) mean 1.0
#     tensor (1, 3, 32, 32) mean 1.0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  "diffusers==0.42.1" "pillow==13.0.0" "torch==2.13.0" "numpy==2.4.6"
cat > "$folder/show.py" <<'PY'
import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

pixels = np.zeros((64, 64, 3), np.uint8)
pixels[::2, ::2] = pixels[1::2, 1::2] = 255
array = pixels.astype(np.float32)[None] / 255
processor = VaeImageProcessor(resample="lanczos")
for name, image in (
    ("Pillow", Image.fromarray(pixels)),
    ("array", array),
    ("tensor", torch.from_numpy(array).permute(0, 3, 1, 2)),
):
    found = processor.preprocess(image, height=32, width=32)
    print(name, tuple(found.shape), f"mean {found.mean().abs():.1f}")
PY
cd "$folder"
venv/bin/python show.py 2> log | tee seen
diff seen - <<'SEEN'
Pillow (1, 3, 32, 32) mean 0.0
array (1, 3, 32, 32) mean 1.0
tensor (1, 3, 32, 32) mean 1.0
SEEN
