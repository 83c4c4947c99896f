#!/usr/bin/env bash
# litdata 0.2.76: rows of one dimension and of different dtypes come back in the dtype of the first one.
#
# `optimize` stores one-dimensional arrays without a header, and notes the dtype of the first in index.json.
# A later row of another dtype is stored as it is and read as the first one's: here four uint16 values come
# back as eight uint8 values. Nothing is raised, neither where they are written nor where they are read.
# Token ids show it easily: a tokenizer's rows are uint8 as long as all ids are below 256.
# vqtok writes all rows of an export with one dtype, that of the vocabulary.
#
# Output seen, 2026-11, Python 3.11:
#     written [[0, 1, 2, 3], [1000, 1001, 1002, 1003]]
#     read    [[0, 1, 2, 3], [232, 3, 233, 3, 234, 3, 235, 3]]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
cat > "$folder/show.py" <<'PY'
import sys

import numpy as np
from litdata import StreamingDataset, optimize


def row(i):
    return np.arange(4, dtype=np.uint8) if i == 0 else np.arange(4, dtype=np.uint16) + 1000


if __name__ == "__main__":
    optimize(row, [0, 1], sys.argv[1], chunk_bytes="1MB", num_workers=1, verbose=False)
    data = StreamingDataset(sys.argv[1])
    print("written", [row(i).tolist() for i in range(2)])
    print("read   ", [data[i].tolist() for i in range(2)])
PY
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "litdata==0.2.76" "numpy==2.1.3" "torch==2.13.0"
"$folder/venv/bin/python" "$folder/show.py" "$folder/data" 2> "$folder/log" | grep -E "^(written|read)" | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
written [[0, 1, 2, 3], [1000, 1001, 1002, 1003]]
read    [[0, 1, 2, 3], [232, 3, 233, 3, 234, 3, 235, 3]]
SEEN
