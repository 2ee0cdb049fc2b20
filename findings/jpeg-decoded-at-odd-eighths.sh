#!/usr/bin/env bash
# libjpeg-turbo: a JPEG decoded at 5/8, 6/8 or 7/8 of its size takes longer than the whole of it, up to twice; at 3/8 as long as at 1/2.
#
# Guess: the fewer pixels, the less work, so a loader that needs two thirds of a photograph should ask for 6/8 (libjpeg-turbo offers all
# eighths; Pillow's draft mode only 1/2, 1/4 and 1/8). But only whole, 1/2 and 1/4 have vectorised inverse transforms; the others go through
# plain C. simplejpeg (min_height, min_width) and PyTurboJPEG (scaling_factor) hand out all of them. Halvings are the sizes to ask for.
# A second thing guessed wrong: without a buffer of one's own the whole picture takes twice as long, for the system clears its memory.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-cache-dir simplejpeg==1.9.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import math
import statistics
import sys
import time
from importlib.metadata import version

import numpy as np
import simplejpeg

print(f"simplejpeg {version('simplejpeg')}, numpy {np.__version__}")

y, x = np.mgrid[:3000, :4000].astype(np.float32)
noise = np.random.default_rng(0).normal(0, 2, (3000, 4000)).astype(np.float32)
waves = [127 + 60 * np.sin(x / (7 + 3 * k) + y / 31) * np.cos(y / (11 - k)) + noise for k in range(3)]
picture = np.stack(waves, axis=-1).clip(0, 255).astype(np.uint8)
content = simplejpeg.encode_jpeg(picture, quality=90)
print(f"4000 x 3000 pixels, {len(content) / 1e6:.1f} MB")


buffer = np.zeros(picture.size, dtype=np.uint8)  # one for all, or new memory would be most of the time of the large ones


def decode(eighths):
    height, width = math.ceil(3000 * eighths / 8), math.ceil(4000 * eighths / 8)
    begin = time.process_time()
    pixels = simplejpeg.decode_jpeg(content, min_height=height, min_width=width, min_factor=1, buffer=buffer)
    taken = time.process_time() - begin
    if pixels.shape[:2] != (height, width):
        sys.exit(f"changed: {eighths}/8 gives {pixels.shape}")
    return 1000 * taken


times = {eighths: [] for eighths in (2, 3, 4, 5, 6, 7, 8)}
for _ in range(15):
    for eighths, taken in times.items():
        taken.append(decode(eighths))
medians = {eighths: statistics.median(taken) for eighths, taken in times.items()}
for eighths, milliseconds in medians.items():
    print(f"{eighths}/8: {milliseconds:.1f} ms")
if not 1.5 * medians[8] < medians[7] or not medians[8] < medians[5] or medians[3] < 0.95 * medians[4]:
    sys.exit("changed: fewer pixels take less time")
print(f"as seen: 7/8 takes {medians[7] / medians[8]:.2f} times as long as the whole, 5/8 {medians[5] / medians[8]:.2f} times")
PYTHON
