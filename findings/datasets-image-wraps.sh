#!/usr/bin/env bash
# datasets 5.2.0: the `Image` feature stores color arrays of wide integers modulo 256.
#
# An array (H, W, 3) of int64 or uint16 is cast to uint8 as it is: 300 becomes 44 and 65,535 becomes 255. A warning
# says "Downcasting array dtype int64 to uint8 to be compatible with 'Pillow'", not that values are lost; it is given
# for arrays whose values fit, too. Gray arrays (H, W) keep their values.
# vqtok scales integers by the range of their type, and says so (tests/test_images_depth.py).
#
# Output seen, 2026-11, Python 3.11; source: own runs:
#     int64 (1, 1, 3) [0, 255, 300] [0, 255, 44]
#     uint16 (1, 1, 3) [1000, 40000, 65535] [232, 64, 255]
#     int64 (1, 3) [0, 255, 300] [0, 255, 300]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "datasets==5.2.0" "pillow==13.0.0" "numpy==2.4.6"
cat > "$folder/show.py" <<'PY'
import datasets
import numpy as np

datasets.disable_progress_bars()
FEATURES = datasets.Features({"image": datasets.Image()})
for array in (
    np.array([[[0, 255, 300]]], np.int64),
    np.array([[[1000, 40_000, 65_535]]], np.uint16),
    np.array([[0, 255, 300]], np.int64),
):
    data = datasets.Dataset.from_dict({"image": [array]}, features=FEATURES)
    print(array.dtype, array.shape, array.ravel().tolist(), np.asarray(data[0]["image"]).ravel().tolist())
PY
cd "$folder"
venv/bin/python show.py 2> log | tee seen
diff seen - <<'SEEN'
int64 (1, 1, 3) [0, 255, 300] [0, 255, 44]
uint16 (1, 1, 3) [1000, 40000, 65535] [232, 64, 255]
int64 (1, 3) [0, 255, 300] [0, 255, 300]
SEEN
