#!/usr/bin/env bash
# pyvips 3.2.0 (pyvips-binary 8.18.7): a YCbCr TIFF that is not compressed as JPEG is read as RGB.
#
# The image says `srgb`, and holds Y, Cb and Cr as they are in the file: a light gray with a touch of yellow, (202, 201,
# 185), is the pink (200, 120, 130), in all that is made from it. OpenCV and Pillow's `convert("RGB")` give the color.
# Pillow writes such a TIFF from any image of mode YCbCr. Nothing is raised and there is no warning.
# vqtok converts YCbCr to RGB (tests/test_surprises.py).
#
# Output seen, 2026-11, Python 3.11; source: own runs:
#     libvips srgb (200, 120, 130)
#     Pillow (202, 201, 185)
#     OpenCV (203, 201, 186)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  "pyvips==3.2.0" "pyvips-binary==8.18.7" "opencv-python-headless==5.0.0.93" "pillow==13.0.0" "numpy==2.4.6"
cat > "$folder/show.py" <<'PY'
import cv2
import pyvips
from PIL import Image

Image.new("YCbCr", (16, 16), (200, 120, 130)).save("a.tif")
found = pyvips.Image.new_from_file("a.tif")
print("libvips", found.interpretation, tuple(int(value) for value in found(0, 0)))
print("Pillow", Image.open("a.tif").convert("RGB").getpixel((0, 0)))
print("OpenCV", tuple(cv2.imread("a.tif", cv2.IMREAD_COLOR_RGB)[0, 0].tolist()))
PY
cd "$folder"
venv/bin/python show.py 2> log | tee seen
diff seen - <<'SEEN'
libvips srgb (200, 120, 130)
Pillow (202, 201, 185)
OpenCV (203, 201, 186)
SEEN
