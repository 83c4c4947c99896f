#!/usr/bin/env bash
# PyTorch 2.13.0, CPU: `torch.cdist` of more than 25 vectors finds another nearest vector than of 25.
#
# By default distances of more than 25 rows come from a matrix product, |a|^2 - 2ab + |b|^2, and of fewer from
# differences. Far from the origin the product loses the difference: the distance of a vector to itself is 0.1 in place of 0,
# and vectors get another nearest entry than in float64. So an index depends on how many entries the codebook
# has, or on how many vectors are looked up at once. `compute_mode="donot_use_mm_for_euclid_dist"` has none of it.
# vqtok searches codebooks by a product of its own, and gives equal indices for any batch (tests/test_vqvae.py).
#
# Output seen, 2026-11, Python 3.11; source: own runs:
#     25 rows: distance to themselves up to 0.0
#     26 rows: distance to themselves up to 0.1
#     25 entries: none of 500 nearest entries are others
#     26 entries: some of 500 nearest entries are others
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "torch==2.13.0" "numpy==2.4.6"
cat > "$folder/show.py" <<'PY'
import torch

torch.manual_seed(0)
for rows in (25, 26):
    x = torch.randn(26, 8)[:rows] + 100
    print(f"{rows} rows: distance to themselves up to {torch.cdist(x, x).diagonal().max():.1f}")
for entries in (25, 26):
    wrong = 0
    for _ in range(20):
        codebook = torch.randn(26, 8)[:entries] + 10_000
        x = codebook[torch.randint(0, entries, (100,))] + 0.01 * torch.randn(100, 8)
        x = x[:25]
        exact = torch.cdist(x.double(), codebook.double()).argmin(1)
        wrong += int((torch.cdist(x, codebook).argmin(1) != exact).sum())
    print(f"{entries} entries: {'some' if wrong else 'none'} of 500 nearest entries are others")
PY
cd "$folder"
venv/bin/python show.py 2> log | tee seen
diff seen - <<'SEEN'
25 rows: distance to themselves up to 0.0
26 rows: distance to themselves up to 0.1
25 entries: none of 500 nearest entries are others
26 entries: some of 500 nearest entries are others
SEEN
