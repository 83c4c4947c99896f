#!/usr/bin/env bash
# safetensors 0.8.0: `numpy.save` writes arrays that are not in C order with their values in the wrong places.
#
# A transposed or Fortran-ordered array is written as its memory lies, under the shape that it shows. Nothing
# is raised, in `save` or in `load`; 0.7.0 writes the same array rightly. vqtok copies every array to C order first
# (`weights.to_safetensors`).
#
# Output seen, 2026-11, Python 3.11:
#     0.7.0 [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]] equal
#     0.8.0 [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]] not equal
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
cat > "$folder/show.py" <<'PY'
import numpy as np
import safetensors
import safetensors.numpy

array = np.arange(6, dtype=np.float32).reshape(2, 3).T
back = safetensors.numpy.load(safetensors.numpy.save({"a": array}))["a"]
result = "equal" if np.array_equal(back, array) else "not equal"
print(safetensors.__version__, back.tolist(), result)
PY
for version in 0.7.0 0.8.0; do
  "$folder/venv/bin/pip" install --quiet --disable-pip-version-check "safetensors==$version" "numpy==2.4.6"
  "$folder/venv/bin/python" "$folder/show.py" | tee -a "$folder/seen"
done
diff "$folder/seen" - <<'SEEN'
0.7.0 [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]] equal
0.8.0 [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]] not equal
SEEN
