#!/usr/bin/env bash
# pillow-jxl-plugin 1.3.8 (Pillow 13.0.0): an image opened from a JPEG file and then changed in place is saved
# as .jxl without the changes.
#
# The plugin transcodes the JPEG file that the image came from, without loss, as soon as the image still says
# `format == "JPEG"`; in-place operations (paste, draw, thumbnail) leave that as it is. So a red square pasted on
# a gray image is gone, a thumbnail of 24x16 becomes a .jxl of 96x64, and a file that was replaced on disk after
# it was opened is what gets saved. Python prints one UserWarning that speaks of JPEG reconstruction, not of
# lost changes. `lossless_jpeg=False` saves the pixels, as Pillow's own formats do.
# vqtok compares codecs on images made from arrays, which have no format, so its figures are not touched.
#
# Output seen, 2026-11, Python 3.11; source: own runs:
#     pasted: in memory (254, 0, 0), as PNG (254, 0, 0), as JPEG XL (200, 200, 200)
#     pasted, lossless_jpeg=False: red
#     thumbnail: in memory (24, 16), as PNG (24, 16), as JPEG XL (96, 64)
#     replaced on disk: in memory (200, 200, 200), as PNG (200, 200, 200), as JPEG XL blue
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "pillow-jxl-plugin==1.3.8" "pillow==13.0.0"
cat > "$folder/show.py" <<'PY'
import warnings

import pillow_jxl  # noqa: F401  (registers itself)
from PIL import Image

warnings.simplefilter("ignore")
SPOT = (48, 32)


def gray_jpeg():
    Image.new("RGB", (96, 64), (200, 200, 200)).save("a.jpg")
    return Image.open("a.jpg")


def saved(image, name, **options):
    image.save(name, **options)
    with Image.open(name) as found:
        found.load()
        return found.copy()


def hue(image):
    r, g, b = image.getpixel(SPOT)
    return "red" if r > 200 > 50 > max(g, b) else "blue" if b > 200 > 50 > max(r, g) else (r, g, b)


image = gray_jpeg()
image.paste((254, 0, 0), (32, 16, 64, 48))
png, jxl = saved(image, "b.png"), saved(image, "b.jxl")
print(f"pasted: in memory {image.getpixel(SPOT)}, as PNG {png.getpixel(SPOT)}, as JPEG XL {jxl.getpixel(SPOT)}")
print("pasted, lossless_jpeg=False:", hue(saved(image, "c.jxl", lossless_jpeg=False)))
image = gray_jpeg()
image.thumbnail((24, 24))
print(f"thumbnail: in memory {image.size}, as PNG {saved(image, 't.png').size}, as JPEG XL {saved(image, 't.jxl').size}")
image = gray_jpeg()
image.load()
Image.new("RGB", (96, 64), (0, 0, 255)).save("a.jpg")
png, jxl = saved(image, "u.png"), saved(image, "u.jxl")
print(f"replaced on disk: in memory {image.getpixel(SPOT)}, as PNG {png.getpixel(SPOT)}, as JPEG XL {hue(jxl)}")
PY
cd "$folder"
venv/bin/python show.py | tee seen
diff seen - <<'SEEN'
pasted: in memory (254, 0, 0), as PNG (254, 0, 0), as JPEG XL (200, 200, 200)
pasted, lossless_jpeg=False: red
thumbnail: in memory (24, 16), as PNG (24, 16), as JPEG XL (96, 64)
replaced on disk: in memory (200, 200, 200), as PNG (200, 200, 200), as JPEG XL blue
SEEN
