#!/usr/bin/env bash
# onnxruntime 1.32.0, CPU: `Resize` makes uint8 images darker by half a level, and brighter with antialias.
#
# With mode `linear` each pixel is the whole part of what the same values give as float32, not the nearest level: 0.47
# too low on average. With `antialias=1` most pixels are right and the others too high. PyTorch rounds, so a graph
# that takes bytes and resizes them has another input than the model that it was exported from. Nothing is raised.
# vqtok's graphs take float32, and no image is resized in them but by nearest pixels.
#
# Output seen, 2026-11, Python 3.11; source: own runs:
#     {} whole part in 100%, nearest level in 53%, mean difference -0.47
#     {'antialias': 1} whole part in 28%, nearest level in 73%, mean difference 0.25
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  "onnxruntime==1.32.0" "onnx==1.23.2" "numpy==2.4.6"
cat > "$folder/show.py" <<'PY'
import numpy as np
import onnxruntime
from onnx import TensorProto, helper


def resize(image, **words):
    kind = helper.np_dtype_to_tensor_dtype(image.dtype)
    node = helper.make_node("Resize", ["x", "", "", "sizes"], ["y"], mode="linear", **words)
    x = helper.make_tensor_value_info("x", kind, image.shape)
    sizes = helper.make_tensor_value_info("sizes", TensorProto.INT64, [4])
    y = helper.make_tensor_value_info("y", kind, None)
    graph = helper.make_graph([node], "resize", [x, sizes], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": image, "sizes": np.array([1, 3, 128, 128])})[0]


image = np.random.default_rng(0).integers(0, 256, (1, 3, 64, 64), dtype=np.uint8)
for words in ({}, {"antialias": 1}):
    found, floats = resize(image, **words).astype(float), resize(image.astype(np.float32), **words)
    cut, rounded = (found == np.floor(floats)).mean(), (found == floats.round()).mean()
    mean = (found - floats).mean()
    print(words, f"whole part in {cut:.0%}, nearest level in {rounded:.0%}, mean difference {mean:.2f}")
PY
cd "$folder"
venv/bin/python show.py 2> log | tee seen
diff seen - <<'SEEN'
{} whole part in 100%, nearest level in 53%, mean difference -0.47
{'antialias': 1} whole part in 28%, nearest level in 73%, mean difference 0.25
SEEN
