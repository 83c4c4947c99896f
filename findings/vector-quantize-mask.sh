#!/usr/bin/env bash
# vector-quantize-pytorch 1.32.0: masked positions, index -1, decode to the last code.
#
# With a mask `VectorQuantize` gives zeros and the index -1 where the mask is False. `get_codes_from_indices` and
# `get_output_from_indices` look -1 up as Python does, and give the last code of the codebook, not zeros. `ResidualVQ`
# of the same package turns -1 into zeros. So padding is decoded as if it were content. Nothing is raised.
# vqtok refuses the index -1 (tests/test_codec_inputs.py).
#
# Output seen, 2026-11, Python 3.11; source: own runs:
#     VectorQuantize indices of the padding [-1]
#       zeros: output True decoded False
#       decoded to the last code: True
#     ResidualVQ indices of the padding [-1]
#       zeros: output True decoded True
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  "vector-quantize-pytorch==1.32.0" "torch==2.13.0" "numpy==2.4.6"
cat > "$folder/show.py" <<'PY'
import torch
from vector_quantize_pytorch import ResidualVQ, VectorQuantize

torch.manual_seed(0)
x = torch.randn(1, 4, 8)
mask = torch.tensor([[True, True, False, False]])
for quantizer in (VectorQuantize(dim=8, codebook_size=16), ResidualVQ(dim=8, codebook_size=16, num_quantizers=2)):
    output, indices, _ = quantizer.eval()(x, mask=mask)
    found = quantizer.get_output_from_indices(indices)
    print(type(quantizer).__name__, "indices of the padding", indices[0, 2:].unique().tolist())
    print("  zeros: output", bool((output[0, 2:] == 0).all()), "decoded", bool((found[0, 2:] == 0).all()))
    if isinstance(quantizer, VectorQuantize):
        print("  decoded to the last code:", torch.equal(found[0, 2], quantizer.codebook[-1]))
PY
cd "$folder"
venv/bin/python show.py 2> log | tee seen
diff seen - <<'SEEN'
VectorQuantize indices of the padding [-1]
  zeros: output True decoded False
  decoded to the last code: True
ResidualVQ indices of the padding [-1]
  zeros: output True decoded True
SEEN
