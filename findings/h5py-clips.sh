#!/usr/bin/env bash
# h5py 3.16.0 (HDF5): integers that do not fit are clipped, where they are written and where they are read.
#
# Assigned to a uint16 data set, -1 becomes 0 and 70,000 becomes 65,535, where NumPy and zarr wrap: 65,535 and 4,464. So
# the -1 of a masked token is stored as token 0, which exists. Read with `astype("i1")`, uint8 200 becomes 127, where
# `data[...].astype("i1")` gives -56. Nothing is raised and there is no warning (see h5py/h5py, issue 2773).
# vqtok writes no HDF5; it refuses indices that no code has (tests/test_codec_inputs.py).
#
# Output seen, 2026-11, Python 3.11; source: own runs:
#     written [5, -1, 70000] stored [5, 0, 65535] NumPy [5, 65535, 4464]
#     stored [5, 200] read as i1 [5, 127] NumPy [5, -56]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "h5py==3.16.0" "numpy==2.4.6"
cat > "$folder/show.py" <<'PY'
import h5py
import numpy as np

with h5py.File("a.h5", "w") as file:
    tokens = np.array([5, -1, 70_000])
    data = file.create_dataset("tokens", (3,), "u2")
    data[...] = tokens
    print("written", tokens.tolist(), "stored", data[...].tolist(), "NumPy", tokens.astype("u2").tolist())
    data = file.create_dataset("bytes", data=np.array([5, 200], "u1"))
    signed = data.astype("i1")[...]
    print("stored", data[...].tolist(), "read as i1", signed.tolist(), "NumPy", data[...].astype("i1").tolist())
PY
cd "$folder"
venv/bin/python show.py 2> log | tee seen
diff seen - <<'SEEN'
written [5, -1, 70000] stored [5, 0, 65535] NumPy [5, 65535, 4464]
stored [5, 200] read as i1 [5, 127] NumPy [5, -56]
SEEN
