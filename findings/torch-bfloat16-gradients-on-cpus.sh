#!/usr/bin/env bash
# On a processor that multiplies bfloat16, the forward pass of a small network gets faster in it and the training step slower: single gradients take many times as
# long as in float32.
#
# Guess: with AVX512_BF16 or AMX torch.autocast("cpu", torch.bfloat16) speeds up a step wherever it speeds up the forward pass; at worst a layer falls back to float32.
# But oneDNN's quick code for the gradients of depthwise convolutions knows bfloat16 for some of the shapes only (of the map with a stride, of the weight with
# kernels wider than 3 it leaves them to code that takes 3 to 100 times as long as the float32 one), and torch's group norm takes four to eight times as long backwards in
# bfloat16 as in float32, for no gain forwards. A step of RetinaNet over EfficientNet-Lite0 took 1.3 times the float32 step's time, and 0.64 of it once these few
# gradients were computed in float32, copies included. A profile of the forward pass shows nothing of this.
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

torch.set_num_threads(1)
able = [name for name in ("avx512_bf16", "amx_bf16") if torch.cpu.get_capabilities().get(name)]
print(f"torch {torch.__version__}, oneDNN {torch.backends.mkldnn.is_available()}, {torch.cpu.get_capabilities()['cpu_name']}: {', '.join(able) or 'no bfloat16 of its own'}")
if not able:
    sys.exit("nothing to see here: it needs a processor that multiplies bfloat16")


def milliseconds(function):
    function()
    times = []
    for _ in range(9):
        begin = time.process_time()
        function()
        times.append(time.process_time() - begin)
    return 1000 * statistics.median(times)


def measure(layer, x, weight, dtype):
    """Of the forward pass, the gradient of the map and that of the weight."""
    x = x.to(dtype, memory_format=torch.channels_last).requires_grad_()
    weight = weight.to(dtype).requires_grad_()
    y = layer(x, weight)
    slope = torch.randn_like(y)
    gradients = (lambda of=of: torch.autograd.grad(y, of, slope, retain_graph=True) for of in (x, weight))
    return [milliseconds(lambda: layer(x, weight)), *map(milliseconds, gradients)]


LAYERS = {
    "3x3 of 64 channels": (lambda x, w: F.conv2d(x, w, padding=1), (4, 64, 32, 32), (64, 64, 3, 3)),
    "depthwise 3x3, stride 2": (lambda x, w: F.conv2d(x, w, stride=2, groups=144), (4, 144, 65, 65), (144, 1, 3, 3)),
    "depthwise 5x5": (lambda x, w: F.conv2d(x, w, padding=2, groups=672), (4, 672, 16, 16), (672, 1, 5, 5)),
    "group norm": (lambda x, w: F.group_norm(x, 4, w), (4, 32, 64, 64), (32,)),
}
ratios = {}
print(f"{'bfloat16 / float32':26} forward  map's gradient  weight's gradient")
for name, (layer, shape, weight_shape) in LAYERS.items():
    x, weight = torch.randn(shape), torch.randn(weight_shape)
    single, half = (measure(layer, x, weight, dtype) for dtype in (torch.float32, torch.bfloat16))
    ratios[name] = [b / a for a, b in zip(single, half)]
    print(f"{name:26} {ratios[name][0]:7.2f} {ratios[name][1]:15.2f} {ratios[name][2]:18.2f}")
slow = ratios["depthwise 3x3, stride 2"][1], ratios["depthwise 5x5"][2], ratios["group norm"][1]
if not (ratios["3x3 of 64 channels"][0] < 0.95 and slow[0] > 5 and slow[1] > 2 and slow[2] > 2):
    sys.exit("changed: these gradients are no longer slow in bfloat16, or convolutions no longer quick")
print("as seen: convolutions are quicker in bfloat16, and these gradients many times slower")
PYTHON
