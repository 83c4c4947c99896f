#!/usr/bin/env bash
# Pillow 13.0.0: `Image.fromarray` changes the values of signed bytes and of large unsigned integers.
#
# An int8 array becomes an image of mode I, whose values could be negative, but -5 becomes 251. A uint32 array
# becomes one of mode I, too, where 4,294,967,295 is -1: black after `convert("L")`. int16 keeps its signs.
# Nothing is raised and there is no warning.
# vqtok scales such arrays itself, before an image is made of them (tests/test_images_depth.py).
#
# Output seen, 2026-11, Python 3.11; source: own runs:
#     int8 [[-5, 5]] I [[251, 5]]
#     int16 [[-5, 5]] I [[-5, 5]]
#     uint32 [[5, 4294967295]] I [[5, -1]]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "pillow==13.0.0" "numpy==2.4.6"
cat > "$folder/show.py" <<'PY'
import numpy as np
from PIL import Image

for array in (
    np.array([[-5, 5]], np.int8),
    np.array([[-5, 5]], np.int16),
    np.array([[5, 2**32 - 1]], np.uint32),
):
    image = Image.fromarray(array)
    print(array.dtype, array.tolist(), image.mode, np.asarray(image).tolist())
PY
cd "$folder"
venv/bin/python show.py 2> log | tee seen
diff seen - <<'SEEN'
int8 [[-5, 5]] I [[251, 5]]
int16 [[-5, 5]] I [[-5, 5]]
uint32 [[5, 4294967295]] I [[5, -1]]
SEEN
