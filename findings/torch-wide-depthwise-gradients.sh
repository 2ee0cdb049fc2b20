#!/usr/bin/env bash
# torch on a CPU: the weight gradient of a depthwise 7 x 7 convolution takes 10 times as long and more as that of a 7 x 3 or a 9 x 3 one.
#
# Guess: a depthwise kernel's cost goes with its number of taps, so 7 x 7 should take 2.3 times as long as 7 x 3. oneDNN has quick code for the
# gradient of depthwise weights only up to three columns, however many rows; a fourth column drops to a slow way. MobileNets and EfficientNets
# (5 x 5) and ConvNeXts (7 x 7) train with it. Cut into pieces of at most three columns, each on the map shifted by as many, the sum is the same.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-cache-dir torch==2.14.1 numpy==2.4.6
OMP_NUM_THREADS=1 "$folder/venv/bin/python" - <<'PYTHON'
import statistics
import sys
import time

import torch
import torch.nn.functional as F

print(f"torch {torch.__version__}, {torch.get_num_threads()} thread, {torch.backends.cpu.get_cpu_capability()}")
CHANNELS, SIDE = 672, 16


def milliseconds(rows, columns):
    x = torch.randn(4, CHANNELS, SIDE, SIDE).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(CHANNELS, 1, rows, columns, requires_grad=True)
    taken = []
    for _ in range(15):
        y = F.conv2d(x, weight, padding=(rows // 2, columns // 2), groups=CHANNELS)
        slope = torch.ones_like(y)
        begin = time.process_time()
        torch.autograd.grad(y, weight, slope)
        taken.append(1000 * (time.process_time() - begin))
    return statistics.median(taken)


times = {}
for rows, columns in ((3, 3), (5, 3), (7, 3), (9, 3), (3, 5), (5, 5), (7, 7)):
    times[rows, columns] = milliseconds(rows, columns)
    print(f"{rows} rows x {columns} columns: {times[rows, columns]:.2f} ms for {CHANNELS} channels of {SIDE} x {SIDE}, 4 images")
of_five, of_seven = times[5, 5] / times[5, 3], times[7, 7] / times[7, 3]
if of_five < 2.5 or of_seven < 5 or times[9, 3] > 2 * times[3, 3]:
    sys.exit("changed: the cost goes with the taps")
print(f"as seen: 5 x 5 takes {of_five:.1f} times as long as 5 x 3, 7 x 7 {of_seven:.1f} times as long as 7 x 3")
PYTHON
