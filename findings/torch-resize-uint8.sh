#!/usr/bin/env bash
# PyTorch 2.13.0, CPU: bicubic `interpolate` of uint8 differs by up to 15 levels from that of the same values as floats.
#
# uint8 is rounded and clamped to 0 to 255 between the two directions: what overshoots at an edge is lost before the
# other direction can bring it back. Two calls with floats, clamped in between, give the same levels. So text and
# drawings have other pixels, and other tokens, than if they had been floats; smooth images differ by one.
# The documentation of `interpolate` does not say so. `bilinear` cannot overshoot.
# vqtok resizes 8 bits by Pillow, in training as in encoding (`images.resize_to`).
#
# Output seen, 2026-11, Python 3.11; source: own runs:
#     bilinear plain: from floats 0.0 from floats in two steps 0.0
#     bilinear antialias: from floats 0.0 from floats in two steps 0.0
#     bicubic plain: from floats 15.0 from floats in two steps 0.0
#     bicubic antialias: from floats 11.0 from floats in two steps 0.0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "torch==2.13.0" "numpy==2.4.6"
cat > "$folder/show.py" <<'PY'
import torch
from torch.nn.functional import interpolate

image = torch.zeros(1, 1, 16, 16, dtype=torch.uint8)
image[..., 8:] = 255
image[..., 4:8, :] = 255 - image[..., 4:8, :]


def to_levels(values):
    return values.round().clamp(0, 255)


def difference(one, other):
    return (one.double() - other.double()).abs().max().item()


for mode in ("bilinear", "bicubic"):
    for antialias in (False, True):
        words = {"mode": mode, "antialias": antialias}
        found = interpolate(image, size=(32, 32), **words)
        floats = to_levels(interpolate(image.float(), size=(32, 32), **words))
        wide = to_levels(interpolate(image.float(), size=(16, 32), **words))
        two_steps = to_levels(interpolate(wide, size=(32, 32), **words))
        print(mode, "antialias" if antialias else "plain", end=": ")
        print("from floats", difference(found, floats), "from floats in two steps", difference(found, two_steps))
PY
cd "$folder"
venv/bin/python show.py 2> log | tee seen
diff seen - <<'SEEN'
bilinear plain: from floats 0.0 from floats in two steps 0.0
bilinear antialias: from floats 0.0 from floats in two steps 0.0
bicubic plain: from floats 15.0 from floats in two steps 0.0
bicubic antialias: from floats 11.0 from floats in two steps 0.0
SEEN
