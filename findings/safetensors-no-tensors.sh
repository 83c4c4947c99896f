#!/usr/bin/env bash
# safetensors 0.4.3: a file of metadata and no tensors has a header that is not JSON.
#
# `save({}, {"a": "b"})` writes `{},"__metadata__":{"a":"b"}}`: the empty object is closed before the
# metadata is put in. Nothing is raised where it is written; `load` of the same package refuses the bytes.
# 0.4.4 writes `{"__metadata__":{"a":"b"}}`, which loads. vqtok asks for 0.4.4 or newer.
#
# Output seen, 2026-11, Python 3.11:
#     0.4.3 {},"__metadata__":{"a":"b"}} SafetensorError
#     0.4.4 {"__metadata__":{"a":"b"}} loads
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
cat > "$folder/show.py" <<'PY'
import safetensors
import safetensors.numpy

data = safetensors.numpy.save({}, {"a": "b"})
try:
    safetensors.numpy.load(data)
    result = "loads"
except Exception as error:
    result = type(error).__name__
print(safetensors.__version__, data[8:].decode().strip(), result)
PY
for version in 0.4.3 0.4.4; do
  "$folder/venv/bin/pip" install --quiet --disable-pip-version-check "safetensors==$version" "numpy==2.4.6"
  "$folder/venv/bin/python" "$folder/show.py" | tee -a "$folder/seen"
done
diff "$folder/seen" - <<'SEEN'
0.4.3 {},"__metadata__":{"a":"b"}} SafetensorError
0.4.4 {"__metadata__":{"a":"b"}} loads
SEEN
