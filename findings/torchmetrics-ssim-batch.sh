#!/usr/bin/env bash
# torchmetrics 1.9.0: the SSIM of a pair of images depends on the other images in its batch.
#
# `structural_similarity_index_measure` with `reduction="none"` gives a value for each pair, but without `data_range`
# the range of values, and with it the constants of SSIM, are those of the whole batch. One pair has 0.82 alone and
# 0.85 beside a brighter pair. With `data_range=1.0` both are equal.
# vqtok's range is always 255 (vqtok/metrics).
#
# Output seen, 2026-11, Python 3.11; source: own runs:
#     {} alone 0.82, beside another pair 0.85
#     {'data_range': 1.0} alone 0.85, beside another pair 0.85
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "torchmetrics==1.9.0" "torch==2.13.0" "numpy==2.4.6"
cat > "$folder/show.py" <<'PY'
import torch
from torchmetrics.functional.image import structural_similarity_index_measure as ssim

draw = torch.Generator().manual_seed(0)
dark = 0.1 * torch.rand(1, 1, 32, 32, generator=draw)
noisy = dark + 0.05 * torch.rand(1, 1, 32, 32, generator=draw)
bright = torch.rand(1, 1, 32, 32, generator=draw)
for words in ({}, {"data_range": 1.0}):
    alone = ssim(dark, noisy, reduction="none", **words)[0]
    beside = ssim(torch.cat([dark, bright]), torch.cat([noisy, bright]), reduction="none", **words)[0]
    print(words, f"alone {alone:.2f}, beside another pair {beside:.2f}")
PY
cd "$folder"
venv/bin/python show.py 2> log | tee seen
diff seen - <<'SEEN'
{} alone 0.82, beside another pair 0.85
{'data_range': 1.0} alone 0.85, beside another pair 0.85
SEEN
