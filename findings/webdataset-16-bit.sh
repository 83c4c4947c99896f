#!/usr/bin/env bash
# webdataset 1.0.2 (Pillow 13.0.0): `decode("rgb8")` and the others clip 16-bit images at 255.
#
# A 16-bit gray PNG goes through Pillow's `convert("RGB")`, which clips: 300 and 65,535 both become white, and an
# image whose values are spread over 16 bits is white nearly everywhere. Nothing is raised.
# vqtok scales by the range of the type, and says if little of it is used (tests/test_images_depth.py).
#
# Output seen, 2026-11, Python 3.11; source: own runs:
#     l8 [0, 255, 255, 255]
#     rgb8 [0, 255, 255, 255]
#     pil [0, 255, 255, 255]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "webdataset==1.0.2" "pillow==13.0.0" "numpy==2.4.6"
cat > "$folder/show.py" <<'PY'
import io
import tarfile

import numpy as np
import webdataset
from PIL import Image

data = io.BytesIO()
Image.fromarray(np.array([[0, 300, 40_000, 65_535]], np.uint16)).save(data, "PNG")
with tarfile.open("a.tar", "w") as tar:
    member = tarfile.TarInfo("a.png")
    member.size = len(data.getvalue())
    tar.addfile(member, io.BytesIO(data.getvalue()))
for kind in ("l8", "rgb8", "pil"):
    (sample,) = webdataset.WebDataset("a.tar", shardshuffle=False).decode(kind)
    print(kind, np.asarray(sample["png"]).reshape(4, -1)[:, 0].tolist())
PY
cd "$folder"
venv/bin/python show.py 2> log | tee seen
diff seen - <<'SEEN'
l8 [0, 255, 255, 255]
rgb8 [0, 255, 255, 255]
pil [0, 255, 255, 255]
SEEN
