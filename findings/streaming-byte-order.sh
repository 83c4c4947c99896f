#!/usr/bin/env bash
# mosaicml-streaming 0.13.0: the MDS encoding `ndarray` forgets the byte order of an array.
#
# MDSWriter stores the name of the dtype (uint16) and the bytes as they lie in memory. A big-endian array, as
# FITS, IDX and some HDF5 readers give them, comes back with its bytes swapped; nothing is raised. With the
# dtype in the encoding (`ndarray:uint16`) it is refused, as "expected uint16, got uint16".
# vqtok writes little-endian ids only.
#
# Output seen, 2026-11, Python 3.11:
#     written [1, 2, 300]
#     read    [256, 512, 11265]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
cat > "$folder/show.py" <<'PY'
import importlib.machinery
import sys
import types


class StandIn(types.ModuleType):  # torchvision plays no part here, and does not load beside a CPU build of torch
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


for name in ("torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.transforms.functional"):
    sys.modules[name] = StandIn(name)
    sys.modules[name].__spec__ = importlib.machinery.ModuleSpec(name, None)
    sys.modules[name].__path__, sys.modules[name].__version__ = [], "0"

import numpy as np
import streaming

array = np.array([1, 2, 300], ">u2")
with streaming.MDSWriter(out=sys.argv[1], columns={"a": "ndarray"}) as writer:
    writer.write({"a": array})
data = streaming.StreamingDataset(local=sys.argv[1], shuffle=False, batch_size=1)
print("written", array.tolist())
print("read   ", data[0]["a"].tolist())
PY
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "mosaicml-streaming==0.13.0" "numpy==2.1.3" "torch==2.13.0"
"$folder/venv/bin/python" "$folder/show.py" "$folder/data" 2> "$folder/log" | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
written [1, 2, 300]
read    [256, 512, 11265]
SEEN
