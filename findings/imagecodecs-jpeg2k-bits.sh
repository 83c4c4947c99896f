#!/usr/bin/env bash
# imagecodecs 2026.3.6: JPEG 2000 in its mode without loss changes integers of more than 24 bits.
#
# `jpeg2k_encode` without a level is lossless: so it is for uint32 up to 2**24, but of noise up to 2**26 nearly all
# values come back as others, with errors as large as they are; smooth ones survive. The format allows 38 bits. Nothing
# is raised in encoding or decoding, and the decoded array is uint32 again, as wide scans and label numbers are.
# vqtok reads JPEG 2000 by Pillow, of 8 and 16 bits.
#
# Output seen, 2026-11, Python 3.11; source: own runs:
#     16 bits: uint32 0% of the values differ
#     20 bits: uint32 0% of the values differ
#     24 bits: uint32 0% of the values differ
#     26 bits: uint32 most values differ
#     28 bits: uint32 most values differ
#     32 bits: uint32 most values differ
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "imagecodecs==2026.3.6" "numpy==2.4.6"
cat > "$folder/show.py" <<'PY'
import imagecodecs
import numpy as np

for bits in (16, 20, 24, 26, 28, 32):
    image = np.random.default_rng(0).integers(0, 2**bits, (32, 32), dtype=np.uint32)
    found = imagecodecs.jpeg2k_decode(imagecodecs.jpeg2k_encode(image))
    wrong = (found != image).mean()
    print(bits, "bits:", found.dtype, "most values differ" if wrong > 0.5 else f"{wrong:.0%} of the values differ")
PY
cd "$folder"
venv/bin/python show.py 2> log | tee seen
diff seen - <<'SEEN'
16 bits: uint32 0% of the values differ
20 bits: uint32 0% of the values differ
24 bits: uint32 0% of the values differ
26 bits: uint32 most values differ
28 bits: uint32 most values differ
32 bits: uint32 most values differ
SEEN
