#!/usr/bin/env bash
# OpenCV 5.0.0.93 (Pillow 13.0.0): an AVIF image that is stored turned stays turned; JPEG, PNG and WebP are set upright.
#
# `imread` turns JPEG, PNG and WebP by their EXIF data. To an AVIF image it applies neither these nor the property
# `irot`, which the format makes a part of the image: an upright photo of 32x48 arrives as 48x32, on its side. libvips
# applies it, and Pillow hands it to `exif_transpose`. Nothing is raised and there is no warning.
# vqtok turns all of them (tests/test_images.py).
#
# Output seen, 2026-11, Python 3.11; source: own runs:
#     JPEG OpenCV (32, 48) libvips (32, 48) Pillow (32, 48)
#     PNG OpenCV (32, 48) libvips (32, 48) Pillow (32, 48)
#     WEBP OpenCV (32, 48) libvips (32, 48) Pillow (32, 48)
#     AVIF OpenCV (48, 32) libvips (32, 48) Pillow (32, 48)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  "opencv-python-headless==5.0.0.93" "pyvips==3.2.0" "pyvips-binary==8.18.7" "pillow==13.0.0" "numpy==2.4.6"
cat > "$folder/show.py" <<'PY'
import io

import cv2
import numpy as np
import pyvips
from PIL import Image, ImageOps

turned = Image.Exif()
turned[0x0112] = 6
for form in ("JPEG", "PNG", "WEBP", "AVIF"):
    data = io.BytesIO()
    Image.new("RGB", (48, 32), (255, 0, 0)).save(data, form, exif=turned)
    found = cv2.imdecode(np.frombuffer(data.getvalue(), np.uint8), cv2.IMREAD_COLOR)
    vips = pyvips.Image.new_from_buffer(data.getvalue(), "").autorot()
    upright = ImageOps.exif_transpose(Image.open(data)).size
    print(form, "OpenCV", found.shape[1::-1], "libvips", (vips.width, vips.height), "Pillow", upright)
PY
cd "$folder"
venv/bin/python show.py 2> log | tee seen
diff seen - <<'SEEN'
JPEG OpenCV (32, 48) libvips (32, 48) Pillow (32, 48)
PNG OpenCV (32, 48) libvips (32, 48) Pillow (32, 48)
WEBP OpenCV (32, 48) libvips (32, 48) Pillow (32, 48)
AVIF OpenCV (48, 32) libvips (32, 48) Pillow (32, 48)
SEEN
