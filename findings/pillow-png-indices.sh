#!/usr/bin/env bash
# Pillow 13.0.0: a palette image whose palette is shorter than its indices is saved as a PNG with other indices.
#
# The PNG gets as many bits for each pixel as the palette needs, and the indices are cut to them: with a palette of
# three colors 4 becomes 0 and 15 becomes 3; without a palette all but 0 become 1. TIFF and GIF keep them. Label maps
# and grids of tokens are kept this way, as the indices of an image of mode P. Nothing is raised and there is no
# warning. The same was reported for Pillow 8.3 (python-pillow/Pillow, issue 6210).
# vqtok keeps indices in arrays, never in images.
#
# Output seen, 2026-11, Python 3.11; source: own runs:
#     in memory, no palette: True
#     PNG, no palette: [0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]
#     in memory, three colors: True
#     PNG, three colors: [0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3]
#     TIFF, three colors: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]
#     GIF, three colors: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "pillow==13.0.0" "numpy==2.4.6"
cat > "$folder/show.py" <<'PY'
import io

import numpy as np
from PIL import Image

INDICES = np.arange(16, dtype=np.uint8).reshape(2, 8)


def read_back(image, form):
    data = io.BytesIO()
    image.save(data, form)
    return np.asarray(Image.open(data)).ravel().tolist()


image = Image.new("P", (8, 2))
image.putdata(INDICES.ravel().tolist())
print("in memory, no palette:", np.array_equal(image, INDICES))
print("PNG, no palette:", read_back(image, "PNG"))
image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
print("in memory, three colors:", np.array_equal(image, INDICES))
for form in ("PNG", "TIFF", "GIF"):
    print(f"{form}, three colors:", read_back(image, form))
PY
cd "$folder"
venv/bin/python show.py 2> log | tee seen
diff seen - <<'SEEN'
in memory, no palette: True
PNG, no palette: [0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]
in memory, three colors: True
PNG, three colors: [0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3]
TIFF, three colors: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]
GIF, three colors: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]
SEEN
