#!/usr/bin/env bash
# torch on a CPU: other busy processes make a training step on all cores tens of times as slow, and what would mend it is read at import.
#
# Guess: where other processes want the cores too, a step gets its share of them and takes two or three times as long. But the pip package's
# OpenMP (libgomp) lets threads spin at the barrier of each of the hundreds of parallel regions of a step, and a spinning thread keeps the core
# that the thread it waits for should have. OMP_WAIT_POLICY=passive, or GOMP_SPINCOUNT=0, lets them sleep; set in os.environ after
# `import torch` it does nothing, since libgomp reads it when it is loaded, and torch has no call for it.
# Seen with two cores and two busy processes; the number depends on both.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-cache-dir torch==2.14.1 numpy==2.4.6
cat >"$folder/step.py" <<'PYTHON'
import os
import sys
import time

import torch

if sys.argv[1] == "late":
    os.environ["OMP_WAIT_POLICY"] = "passive"
torch.manual_seed(0)
layers = [torch.nn.Conv2d(3, 32, 3, padding=1)]
for _ in range(12):
    layers += [torch.nn.GroupNorm(8, 32), torch.nn.ReLU(), torch.nn.Conv2d(32, 32, 3, padding=1)]
net = torch.nn.Sequential(*layers)
images = torch.randn(2, 3, 64, 64)
for line in sys.stdin:
    begin = time.perf_counter()
    for _ in range(int(line)):
        net(images).square().mean().backward()
    print((time.perf_counter() - begin) / int(line), flush=True)
PYTHON
"$folder/venv/bin/python" - "$folder/step.py" <<'PYTHON'
import importlib.metadata
import os
import statistics
import subprocess
import sys

cores = len(os.sched_getaffinity(0))
print(f"torch {importlib.metadata.version('torch')}, {cores} cores, beside as many busy processes")
ways = {
    "as it is": {},
    "passive, set after the import": {},
    "GOMP_SPINCOUNT=0": {"GOMP_SPINCOUNT": "0"},
    "OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive"},
}
processes = {
    way: subprocess.Popen(
        [sys.executable, sys.argv[1], "late" if "after" in way else "early"],
        env={**os.environ, "OMP_NUM_THREADS": str(cores), **environment},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )
    for way, environment in ways.items()
}
taken = {way: [] for way in ways}
busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(cores)]
try:
    for turn in range(8):
        for way, process in processes.items():
            print(2, file=process.stdin, flush=True)
            seconds = float(process.stdout.readline())
            taken[way] += [seconds] if turn else []
finally:
    for process in [*busy, *processes.values()]:
        process.kill()
medians = {way: statistics.median(seconds) for way, seconds in taken.items()}
for way, seconds in medians.items():
    print(f"{way}: {1000 * seconds:.0f} ms a step")
spinning, late, _, passive = medians.values()
if min(spinning, late) < 2 * passive:
    sys.exit("changed: threads that spin are not twice as slow")
print(f"as seen: as it is a step takes {spinning / passive:.1f} times as long as with threads that sleep")
PYTHON
