#!/usr/bin/env bash
# PyTorch 2.13.0: the first optimizer of a process imports torch._dynamo.
#
# `import torch` leaves the compiler out; making `torch.optim.SGD` of one parameter brings it in, with several hundred
# modules, whether or not anything is ever compiled. It takes 0.5 s and more, at the first step's cost.
# vqtok makes an optimizer in `train` alone, not to encode, decode or sample.
#
# Output seen, 2026-11, Python 3.11; source: own runs:
#     after import torch: False
#     after SGD(...): True over 100 modules more
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "torch==2.13.0" "numpy==2.4.6"
cat > "$folder/show.py" <<'PY'
import sys

import torch

before = set(sys.modules)
print("after import torch:", "torch._dynamo" in sys.modules)
torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
more = len(set(sys.modules) - before)
print("after SGD(...):", "torch._dynamo" in sys.modules, "over 100 modules more" if more > 100 else more)
PY
cd "$folder"
venv/bin/python show.py 2> log | tee seen
diff seen - <<'SEEN'
after import torch: False
after SGD(...): True over 100 modules more
SEEN
