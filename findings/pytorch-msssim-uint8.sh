#!/usr/bin/env bash
# pytorch-msssim 1.0.0: the SSIM of any two uint8 images is 1.
#
# `ssim` casts its window to the type of the images: the weights of a Gaussian, all below 1, become 0, and so do
# means and variances. Two images of noise are "equal". Floats of the same values give what they should, about 0.
# vqtok's own SSIM takes uint8 (docs/trust.md compares it).
#
# Output seen, 2026-11, Python 3.11; source: own runs:
#     uint8 1.00, float 0.02
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "pytorch-msssim==1.0.0" "torch==2.13.0" "numpy==2.4.6"
cat > "$folder/show.py" <<'PY'
import torch
from pytorch_msssim import ssim

draw = torch.Generator().manual_seed(0)
one, other = (torch.randint(0, 256, (1, 3, 64, 64), generator=draw, dtype=torch.uint8) for _ in range(2))
print(f"uint8 {ssim(one, other):.2f}, float {ssim(one.float(), other.float()):.2f}")
PY
cd "$folder"
venv/bin/python show.py 2> log | tee seen
diff seen - <<'SEEN'
uint8 1.00, float 0.02
SEEN
