#!/usr/bin/env bash
# NumPy 2.4.6: of an .npz with arrays called `a` and `a.npy`, the second reads as the first.
#
# `np.savez` writes the members `a.npy` and `a.npy.npy`. `NpzFile` lists the names `a` and `a.npy`, but looks for a
# name among the members first, where `a.npy` is the array `a`. Nothing is raised; the other array is in the
# file and cannot be reached by the name that it was given.
# vqtok writes and reads members by fixed names, none of which ends in .npy.
#
# Output seen, 2026-11, Python 3.11; source: own runs:
#     names ['a', 'a.npy']
#     read  {'a': [1], 'a.npy': [1]} written {'a': [1], 'a.npy': [2]}
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "numpy==2.4.6"
cat > "$folder/show.py" <<'PY'
import numpy as np

np.savez("two.npz", **{"a": np.array([1]), "a.npy": np.array([2])})
found = np.load("two.npz")
print("names", found.files)
print("read ", {name: found[name].tolist() for name in found.files}, "written {'a': [1], 'a.npy': [2]}")
PY
cd "$folder"
venv/bin/python show.py 2> log | tee seen
diff seen - <<'SEEN'
names ['a', 'a.npy']
read  {'a': [1], 'a.npy': [1]} written {'a': [1], 'a.npy': [2]}
SEEN
