#!/usr/bin/env bash
# torch on one thread: a 1x1 convolution of fewer than 16 images takes about twice as long as one of 16, pixel for pixel.
#
# Guess: one thread takes as long as two threads take together, and 1x1 convolutions are plain products, hard to get wrong. With one thread
# (OMP_NUM_THREADS=1, which torchrun sets for every worker that it starts, and loaders and servers set by hand) torch leaves them to its own
# slow_conv2d instead of oneDNN, forward and backward, unless the batch has 16 images. A ResNet-50 or a MobileNet is mostly such
# convolutions. Channels last, cutting the same pixels into 16 "images" is a view, and goes the fast way.
# The number depends on the processor: seen with an AMD EPYC, where MKL's products, which slow_conv2d calls, have their own handicap.
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
from torch.profiler import profile

print(f"torch {torch.__version__}, {torch.get_num_threads()} thread, {torch.backends.cpu.get_cpu_capability()}")


def operators(x, weight):
    with profile() as seen:
        F.conv2d(x, weight)
    return {event.name for event in seen.events()}


def milliseconds(x, weight):
    x, weight, taken = x.requires_grad_(), weight.requires_grad_(), []
    slope = torch.ones_like(F.conv2d(x, weight))
    for _ in range(15):
        begin = time.process_time()
        torch.autograd.grad(F.conv2d(x, weight), (x, weight), slope)
        taken.append(1000 * (time.process_time() - begin))
    return statistics.median(taken)


ratios = []
for channels_in, channels_out, side in ((256, 64, 80), (512, 128, 40), (256, 1024, 20), (480, 112, 32)):
    one = torch.randn(1, channels_in, side, side).contiguous(memory_format=torch.channels_last)
    pixels = one.permute(0, 2, 3, 1).reshape(16, 1, -1, channels_in).permute(0, 3, 1, 2)
    weight = torch.randn(channels_out, channels_in, 1, 1).contiguous(memory_format=torch.channels_last)
    slow, fast = operators(one, weight), operators(pixels, weight)
    times = milliseconds(one, weight), milliseconds(pixels, weight)
    ratios.append(times[0] / times[1])
    print(f"{channels_in} -> {channels_out} on {side} x {side}: {times[0]:.2f} ms, in 16 pieces {times[1]:.2f} ms")
    if "aten::_slow_conv2d_forward" not in slow or "aten::mkldnn_convolution" not in fast:
        sys.exit("changed: torch chooses otherwise")
if statistics.median(ratios) < 1.2:
    sys.exit("changed: both take as long")
print(f"as seen: one image goes through slow_conv2d and takes {statistics.median(ratios):.2f} times as long")
PYTHON
