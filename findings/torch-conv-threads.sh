#!/usr/bin/env bash
# PyTorch 2.13.0, CPU (x86): a 1x1 convolution gives other bits on two threads than on one; a 3x3 convolution does not.
#
# oneDNN divides the sum over 512 channels otherwise when it has two threads. Batch, sizes and weights are the same.
# Results from two to eight threads are equal, on one thread they differ in most values, by the last bits; a
# nearest code that is a near tie flips. Seen with AVX2 and with AVX-512 (ONEDNN_MAX_CPU_ISA), where fewer channels do it.
# vqtok runs 1x1 convolutions on one thread (tests/test_cli_several.py).
#
# Output seen, 2026-11, Python 3.11; source: own runs:
#     1x1 {1: True, 2: False, 4: False, 8: False}
#     3x3 {1: True, 2: True, 4: True, 8: True}
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "torch==2.13.0" "numpy==2.4.6"
cat > "$folder/show.py" <<'PY'
import torch


def convolve(kernel, threads):
    torch.set_num_threads(threads)
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(1, 512, 32, 32, generator=draw)
    weight = torch.randn(512, 512, kernel, kernel, generator=draw)
    return torch.nn.functional.conv2d(x, weight, padding=kernel // 2)


for kernel in (1, 3):
    one = convolve(kernel, 1)
    print(f"{kernel}x{kernel}", {n: torch.equal(one, convolve(kernel, n)) for n in (1, 2, 4, 8)})
PY
cd "$folder"
venv/bin/python show.py 2> log | tee seen
diff seen - <<'SEEN'
1x1 {1: True, 2: False, 4: False, 8: False}
3x3 {1: True, 2: True, 4: True, 8: True}
SEEN
