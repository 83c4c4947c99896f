#!/usr/bin/env bash
# Pillow 13.0.0: `np.asarray` of an image of mode LAB gives other values than its pixels have.
#
# `getpixel`, `split` and `getchannel` have a* and b* from 0 to 255 with 128 in the middle; the array has them turned
# by 128: neutral gray is (L, 128, 128) as a pixel and (L, 0, 0) in an array, and the neighbors 127 and 129 are 255 and
# 1. So the mean of an array and the distance of two colors in it are wrong, and the colors of an array that another
# library resizes. `fromarray` turns them back, so that a round trip hides it. Nothing is raised.
# vqtok converts LAB images to sRGB in Pillow, before an array is made of them (tests/test_images.py).
#
# Output seen, 2026-11, Python 3.11; source: own runs:
#     gray: pixel (128, 128) array (0, 0)
#     a*: pixels [127, 129, 129, 129] array [255, 1, 1, 1]
#     a* by getchannel [127, 129, 129, 129]
#     mean of a*: by Pillow 129 of the array 64.5
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "pillow==13.0.0" "numpy==2.4.6"
cat > "$folder/show.py" <<'PY'
import numpy as np
from PIL import Image, ImageCms

to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
gray = ImageCms.applyTransform(Image.new("RGB", (2, 1), (128, 128, 128)), to_lab)
print("gray: pixel", gray.getpixel((0, 0))[1:], "array", tuple(np.asarray(gray)[0, 0].tolist())[1:])
tints = Image.new("LAB", (4, 1), (200, 129, 129))
tints.putpixel((0, 0), (200, 127, 127))
array = np.asarray(tints)
print("a*: pixels", [tints.getpixel((x, 0))[1] for x in range(4)], "array", array[0, :, 1].tolist())
print("a* by getchannel", np.asarray(tints.getchannel("A"))[0].tolist())
mean = tints.resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))[1]
print("mean of a*: by Pillow", mean, "of the array", array[0, :, 1].mean())
PY
cd "$folder"
venv/bin/python show.py 2> log | tee seen
diff seen - <<'SEEN'
gray: pixel (128, 128) array (0, 0)
a*: pixels [127, 129, 129, 129] array [255, 1, 1, 1]
a* by getchannel [127, 129, 129, 129]
mean of a*: by Pillow 129 of the array 64.5
SEEN
