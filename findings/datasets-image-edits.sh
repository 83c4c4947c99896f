#!/usr/bin/env bash
# datasets 5.2.0 (Pillow 13.0.0): an image that was opened from a file and then edited in place is stored as it is
# in the file.
#
# The `Image` feature stores the name of the file that an image was opened from, not its pixels, for as long as the
# object has one. A red square pasted on a gray image is gone; so is a thumbnail: the image has the file's size.
# `image.copy()` has no file name, and is stored as it is. Nothing is raised and there is no warning.
# vqtok takes the pixels of the images that it is given (tests/test_surprises.py).
#
# Output seen, 2026-11, Python 3.11; source: own runs:
#     pasted: in memory (254, 0, 0) stored (200, 200, 200)
#     pasted, copied: stored (254, 0, 0)
#     thumbnail: in memory (24, 16) stored (96, 64)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "datasets==5.2.0" "pillow==13.0.0" "numpy==2.4.6"
cat > "$folder/show.py" <<'PY'
import datasets
from PIL import Image

datasets.disable_progress_bars()
FEATURES = datasets.Features({"image": datasets.Image()})
Image.new("RGB", (96, 64), (200, 200, 200)).save("gray.png")


def stored(image):
    return datasets.Dataset.from_dict({"image": [image]}, features=FEATURES)[0]["image"]


edited = Image.open("gray.png")
edited.paste((254, 0, 0), (0, 0, 48, 48))
print("pasted: in memory", edited.getpixel((9, 9)), "stored", stored(edited).getpixel((9, 9)))
print("pasted, copied: stored", stored(edited.copy()).getpixel((9, 9)))
small = Image.open("gray.png")
small.thumbnail((24, 24))
print("thumbnail: in memory", small.size, "stored", stored(small).size)
PY
cd "$folder"
venv/bin/python show.py 2> log | tee seen
diff seen - <<'SEEN'
pasted: in memory (254, 0, 0) stored (200, 200, 200)
pasted, copied: stored (254, 0, 0)
thumbnail: in memory (24, 16) stored (96, 64)
SEEN
