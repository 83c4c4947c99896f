#!/usr/bin/env bash
# Pillow 13.0.0: the transparent color of a PNG (its tRNS chunk) is compared with other numbers than the pixels'.
#
# Gray of 2 and 4 bits is scaled to bytes, 3 of 15 to 51, but `info["transparency"]` stays 3: after `convert("RGBA")`
# nothing is transparent. Of colors of 16 bits the high bytes are kept, and the low bytes of the key are compared with
# them: what is meant stays opaque, and other colors become transparent. Gray of 1, 8 and 16 bits is right.
# Nothing is raised and there is no warning.
# vqtok scales the key, and compares whole numbers of 16 bits (tests/test_images_depth.py).
#
# Output seen, 2026-11, Python 3.11; source: own runs:
#     1 bit, the second is transparent: [255, 0]
#     2 bits, the second is transparent: [255, 255]
#     4 bits, the second is transparent: [255, 255]
#     8 bits, the second is transparent: [255, 0]
#     colors of 16 bits, the second is transparent: [0, 255]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "pillow==13.0.0"
cat > "$folder/show.py" <<'PY'
import io
import struct
import zlib

from PIL import Image


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def alpha(bits, color, row, key):
    head = struct.pack(">IIBBBBB", 2, 1, bits, color, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"tRNS", key)
    data += chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b"")
    image = Image.open(io.BytesIO(data)).convert("RGBA").getchannel("A")
    return [image.getpixel((x, 0)) for x in range(2)]


for bits in (1, 2, 4, 8):  # two pixels: 0 and 1
    row = bytes([0, 1]) if bits == 8 else bytes([1 << (8 - 2 * bits)])
    named = "1 bit" if bits == 1 else f"{bits} bits"
    print(f"{named}, the second is transparent:", alpha(bits, 0, row, struct.pack(">H", 1)))
other, key = struct.pack(">HHH", 0x34FF, 0x02FF, 0x04FF), struct.pack(">HHH", 0x1234, 0x0102, 0x0304)
print("colors of 16 bits, the second is transparent:", alpha(16, 2, other + key, key))
PY
cd "$folder"
venv/bin/python show.py 2> log | tee seen
diff seen - <<'SEEN'
1 bit, the second is transparent: [255, 0]
2 bits, the second is transparent: [255, 255]
4 bits, the second is transparent: [255, 255]
8 bits, the second is transparent: [255, 0]
colors of 16 bits, the second is transparent: [0, 255]
SEEN
