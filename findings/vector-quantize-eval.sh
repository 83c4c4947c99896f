#!/usr/bin/env bash
# vector-quantize-pytorch 1.32.0: with `kmeans_init=True` the first call writes the codebook, in eval mode, too, and a
# frozen one.
#
# As long as k-means has not run, any forward pass runs it: under `eval()`, under `no_grad`, with
# `freeze_codebook=True`. A model that is validated once before its first step gets its codebook from validation images.
# A second call changes nothing. Nothing is raised and there is no warning.
# vqtok runs k-means in `train` only, on training images (vqtok/train/tokenizer.py).
#
# Output seen, 2026-11, Python 3.11; source: own runs:
#     {} changed by the first call: True by the second: False
#     {'freeze_codebook': True} changed by the first call: True by the second: False
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  "vector-quantize-pytorch==1.32.0" "torch==2.13.0" "numpy==2.4.6"
cat > "$folder/show.py" <<'PY'
import torch
from vector_quantize_pytorch import VectorQuantize

torch.manual_seed(0)
for words in ({}, {"freeze_codebook": True}):
    quantizer = VectorQuantize(dim=8, codebook_size=16, kmeans_init=True, **words).eval()
    books = [quantizer.codebook.clone()]
    for _ in range(2):
        with torch.no_grad():
            quantizer(torch.randn(1, 64, 8))
        books.append(quantizer.codebook.clone())
    changed = [not torch.equal(one, other) for one, other in zip(books, books[1:])]
    print(words, "changed by the first call:", changed[0], "by the second:", changed[1])
PY
cd "$folder"
venv/bin/python show.py 2> log | tee seen
diff seen - <<'SEEN'
{} changed by the first call: True by the second: False
{'freeze_codebook': True} changed by the first call: True by the second: False
SEEN
