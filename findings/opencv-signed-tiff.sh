#!/usr/bin/env bash
# OpenCV 5.0.0.93: negative values of a signed TIFF become bright, where it is read as 8 bits.
#
# `imread` without flags, and with IMREAD_GRAYSCALE, takes the bits of signed values for those of unsigned ones: 0 is
# black, and -1 is white; -30,000 is 138, brighter than 30,000, which is 117. So do signed bytes. With IMREAD_UNCHANGED
# the values are right. Depth maps and scans are stored so. Nothing is raised and there is no warning.
# vqtok reads the sign from the tags (tests/test_images_depth.py).
#
# Output seen, 2026-11, Python 3.11; source: own runs:
#     int16 UNCHANGED [-30000, -1, 0, 30000]
#     int16 GRAYSCALE [138, 255, 0, 117]
#     int16 COLOR [138, 255, 0, 117]
#     int8 UNCHANGED [-100, -1, 0, 100]
#     int8 GRAYSCALE [156, 255, 0, 100]
#     int8 COLOR [156, 255, 0, 100]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  "opencv-python-headless==5.0.0.93" "tifffile==2026.3.3" "numpy==2.4.6"
cat > "$folder/show.py" <<'PY'
import cv2
import numpy as np
import tifffile

for dtype, values in ((np.int16, [-30_000, -1, 0, 30_000]), (np.int8, [-100, -1, 0, 100])):
    tifffile.imwrite("a.tif", np.array([values] * 4, dtype), photometric="minisblack")
    for name in ("UNCHANGED", "GRAYSCALE", "COLOR"):
        found = cv2.imread("a.tif", getattr(cv2, f"IMREAD_{name}"))
        print(np.dtype(dtype), name, found[0].reshape(4, -1)[:, 0].tolist())
PY
cd "$folder"
venv/bin/python show.py 2> log | tee seen
diff seen - <<'SEEN'
int16 UNCHANGED [-30000, -1, 0, 30000]
int16 GRAYSCALE [138, 255, 0, 117]
int16 COLOR [138, 255, 0, 117]
int8 UNCHANGED [-100, -1, 0, 100]
int8 GRAYSCALE [156, 255, 0, 100]
int8 COLOR [156, 255, 0, 100]
SEEN
