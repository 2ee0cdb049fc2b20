#!/usr/bin/env bash
# OpenVINO's CPU plugin: a TopK that keeps equals in order costs hundreds of times one that does not.
#
# ONNX's TopK puts the first of equals first, OpenVINO's only with stable=True. The guess is that this costs as little as a stable sort
# does. The plugin's time grows with k times n then: five levels of a detector, 1,000 of each, took six times as long as the whole network
# before them. Where equal scores don't matter, leave it False.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check openvino==2026.4.1 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import statistics
import sys
import time

import numpy as np
import openvino as ov
from openvino import opset11

print(f"OpenVINO {ov.__version__}")
core = ov.Core()


def compiled(n, k, stable):
    x = opset11.parameter([1, n], ov.Type.f32)
    best = opset11.topk(x, np.int64(k), 1, "max", "value", "i64", stable=stable)
    how = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    return core.compile_model(ov.Model(best.outputs(), [x]), "CPU", how)


def milliseconds(model, x):
    request, taken = model.create_infer_request(), []
    for _ in range(7):
        begin = time.process_time()
        request.infer([x])
        taken.append(1000 * (time.process_time() - begin))
    return statistics.median(taken)


ratios = {}
for n, k in ((14_400, 100), (14_400, 1000), (115_200, 1000)):
    x = np.random.default_rng(0).random((1, n), dtype=np.float32)
    fast, slow = (milliseconds(compiled(n, k, stable), x) for stable in (False, True))
    ratios[n, k] = slow / fast
    print(f"best {k} of {n}: {fast:.2f} ms, stable {slow:.1f} ms, {slow / fast:.0f} times")
if min(ratios[14_400, 1000], ratios[115_200, 1000]) < 50:
    sys.exit("changed: stable has become cheap")
print("as seen: the stable one costs far more than a stable sort")
PYTHON
