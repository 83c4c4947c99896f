#!/usr/bin/env bash
# diffusers 0.42.1: `VaeImageProcessor.preprocess` takes the values of uint8 arrays and tensors for 0 to 1.
#
# The network's input should lie between -1 and 1, and does for a Pillow image. The same pixels as an array or tensor of
# uint8 are not divided by 255, but become 2x - 1, up to 509: an image that is white nearly everywhere. The range is
# looked at, but only for negative values. Nothing is raised and there is no warning.
# vqtok scales integers by the range of their type (tests/test_codec_inputs.py, tests/test_images_depth.py).
#
# Output seen, 2026-11, Python 3.11; source: own runs:
#     Pillow -1.0 to 1.0
#     float array -1.0 to 1.0
#     uint8 array -1.0 to 509.0
#     uint8 tensor -1.0 to 509.0
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

pixels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, 2)
for name, image in (
    ("Pillow", Image.fromarray(pixels)),
    ("float array", pixels.astype(np.float32)[None] / 255),
    ("uint8 array", pixels[None]),
    ("uint8 tensor", torch.from_numpy(pixels).permute(2, 0, 1)[None]),
):
    found = VaeImageProcessor().preprocess(image)
    print(name, found.min().item(), "to", found.max().item())
PY
cd "$folder"
venv/bin/python show.py 2> log | tee seen
diff seen - <<'SEEN'
Pillow -1.0 to 1.0
float array -1.0 to 1.0
uint8 array -1.0 to 509.0
uint8 tensor -1.0 to 509.0
SEEN
