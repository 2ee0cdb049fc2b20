#!/usr/bin/env bash
# A 16-bit RGB TIFF whose colours lie in planes of their own: Pillow opens it without a word, and gives a picture that is not in the file.
#
# Guess: Pillow has no mode for 48 bits, so that such a picture is either refused or comes with its upper 8 bits. That is so where the
# three numbers of a pixel lie together. Where the file has a plane for each colour (PlanarConfiguration 2, as microscopes and tifffile
# with planarconfig="separate" write it) the bytes of a plane are taken for 8-bit values: size and mode are right, the pixels are not,
# and a training goes on with them.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pillow==13.0.0 tifffile==2026.3.3 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import io
import sys

import numpy as np
import PIL
import tifffile
from PIL import Image

print(f"Pillow {PIL.__version__}, tifffile {tifffile.__version__}")
y, x = np.mgrid[:40, :60]
colours = np.stack([1000 * y, 1000 * x, 300 * (x + y)]).astype(np.uint16)  # (3, height, width), smooth
upper = np.moveaxis(colours >> 8, 0, -1).astype(int)  # what 8 bits can keep of it


def difference(planes, order):
    """Mode, size, and the mean difference from the upper 8 bits."""
    file = io.BytesIO()
    values = colours if planes else np.moveaxis(colours, 0, -1)
    config = "separate" if planes else "contig"
    tifffile.imwrite(file, values, photometric="rgb", planarconfig=config, byteorder=order)
    file.seek(0)
    assert np.array_equal(tifffile.imread(file), values)
    file.seek(0)
    with Image.open(file) as image:
        return image.mode, image.size, round(float(np.abs(np.asarray(image).astype(int) - upper).mean()), 1)


is_as_seen = True
for order in "<>":
    together, apart = difference(False, order), difference(True, order)
    print(f"byte order {order}: pixel by pixel {together}; in planes {apart} (mode, size, mean difference of 255)")
    is_as_seen &= together == ("RGB", (60, 40), 0.0) and apart[:2] == ("RGB", (60, 40)) and apart[2] > 20
if not is_as_seen:
    sys.exit("changed: not what was seen")
print("as seen: in planes, the picture is another one")
PYTHON
