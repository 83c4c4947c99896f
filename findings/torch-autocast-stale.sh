#!/usr/bin/env bash
# PyTorch 2.13.0: inside one block of `torch.autocast` a weight that is changed in place goes on with its old values.
#
# The first use of a parameter casts it to bfloat16, and the copy is kept until the block ends, whatever happens to the
# parameter: codes that are restarted, weights that are loaded, `optimizer.step()`. With the block around the training
# loop the loss does not change at all. `cache_enabled=False` has none of it. Nothing is raised and there is no warning.
# vqtok opens a block for each forward pass, and changes weights and codebooks after it (vqtok/train/loop.py).
#
# Output seen, 2026-11, Python 3.11; source: own runs:
#     product 4.0 and of a weight ten times as large 4.0
#     product after the block 40.0
#     losses, cache_enabled = True [16.0, 16.0, 16.0]
#     losses, cache_enabled = False [16.0, 5.8, 2.1]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "torch==2.13.0" "numpy==2.4.6"
cat > "$folder/show.py" <<'PY'
import torch

x = torch.ones(1, 4)


def losses(cache):
    layer = torch.nn.Linear(4, 1, bias=False)
    torch.nn.init.ones_(layer.weight)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.05)
    found = []
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=cache):
        for _ in range(3):
            loss = layer(x).float().square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(round(loss.item(), 1))
    return found


weight = torch.nn.Parameter(torch.ones(1, 4))
with torch.autocast("cpu", torch.bfloat16):
    before = torch.nn.functional.linear(x, weight).item()
    with torch.no_grad():
        weight.mul_(10)
    print("product", before, "and of a weight ten times as large", torch.nn.functional.linear(x, weight).item())
print("product after the block", torch.nn.functional.linear(x, weight).item())
for cache in (True, False):
    print("losses, cache_enabled =", cache, losses(cache))
PY
cd "$folder"
venv/bin/python show.py 2> log | tee seen
diff seen - <<'SEEN'
product 4.0 and of a weight ten times as large 4.0
product after the block 40.0
losses, cache_enabled = True [16.0, 16.0, 16.0]
losses, cache_enabled = False [16.0, 5.8, 2.1]
SEEN
