#!/usr/bin/env bash
# onnxruntime 1.32.0, CPU: sums of int64 are wrong above 2**53, and sums of int32 stop at the largest int32.
#
# `ReduceSum` and `ReduceProd` of integers go by float64: an odd number above 2**53 loses its last bit, and the product
# of this one value alone is another. int32 is clipped at 2,147,483,647, where `Add` and NumPy wrap. So checksums
# and hashes in a graph of integers come out wrong, though all inputs and results fit their types. Nothing is raised.
# vqtok's graphs sum indices and small weights, far below these limits (vqtok/onnx/codes.py).
#
# Output seen, 2026-11, Python 3.11; source: own runs:
#     int64 sum 4 NumPy 5 (less 2**53)
#     int64 sum of a row [4]
#     int64 product of one value 0 NumPy 1
#     int32 sum 2147483647 NumPy in int32 -2147483639
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


def reduce(name, array, **words):
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    inputs = [helper.make_tensor_value_info("x", kind, array.shape)]
    feed = {"x": array}
    if "axis" in words:
        inputs.append(helper.make_tensor_value_info("axes", TensorProto.INT64, [1]))
        feed["axes"] = np.array([words["axis"]])
    node = helper.make_node(name, [found.name for found in inputs], ["y"], keepdims=0)
    graph = helper.make_graph([node], "sum", inputs, [helper.make_tensor_value_info("y", kind, None)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feed)[0].tolist()


wide = np.array([2**53 + 1, 2, 2])
print("int64 sum", reduce("ReduceSum", wide) - 2**53, "NumPy", int(wide.sum()) - 2**53, "(less 2**53)")
print("int64 sum of a row", [found - 2**53 for found in reduce("ReduceSum", wide[None], axis=1)])
print("int64 product of one value", reduce("ReduceProd", wide[:1]) - 2**53, "NumPy 1")
large = np.array([2**31 - 1, 10], np.int32)
print("int32 sum", reduce("ReduceSum", large), "NumPy in int32", int(large.sum(dtype=np.int32)))
PY
cd "$folder"
venv/bin/python show.py 2> log | tee seen
diff seen - <<'SEEN'
int64 sum 4 NumPy 5 (less 2**53)
int64 sum of a row [4]
int64 product of one value 0 NumPy 1
int32 sum 2147483647 NumPy in int32 -2147483639
SEEN
