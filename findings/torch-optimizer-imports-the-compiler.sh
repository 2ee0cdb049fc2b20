#!/usr/bin/env bash
# The first optimizer of a process imports torch's compiler: about a second of processor time, also where compiling is switched off.
#
# Guess: torch.optim.SGD of one weight is made in microseconds, and who never calls torch.compile does not pay for it. But `add_param_group` is
# wrapped so that the compiler leaves it alone, and the wrapper imports torch._dynamo, with sympy and some 900 modules, when it is first called;
# TORCHDYNAMO_DISABLE makes no difference. Every rank of a training pays, and every short run or test that starts a process of its own; of 4.5 s of
# processor time that a small training needed before its first step it was a quarter (torchvision, imported before, had brought it already).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-cache-dir torch==2.14.1 numpy==2.4.6
OMP_NUM_THREADS=1 "$folder/venv/bin/python" - <<'PYTHON'
import subprocess
import sys

import torch

print(f"torch {torch.__version__}")
PROGRAM = """
import sys, time
import torch
weight = torch.nn.Parameter(torch.zeros(1))
before, begin = set(sys.modules), time.process_time()
{what}
print(time.process_time() - begin, len(set(sys.modules) - before), "torch._dynamo" in sys.modules)
"""


def measure(what):
    """Seconds of a statement in a fresh process, modules that it imports, and whether the compiler is among all of them."""
    done = subprocess.run([sys.executable, "-c", PROGRAM.format(what=what)], check=True, capture_output=True, text=True)
    seconds, modules, has_compiler = done.stdout.split()
    print(f"{what}: {float(seconds):.2f} s, {modules} modules, torch._dynamo is {'there' if has_compiler == 'True' else 'not there'}")
    return has_compiler == "True"


forward = measure("torch.nn.Linear(1, 1)(torch.zeros(1, 1)).sum().backward()")
built = measure("torch.optim.SGD([weight], lr=0.1)")
off = measure("import os; os.environ['TORCHDYNAMO_DISABLE'] = '1'; torch.optim.SGD([weight], lr=0.1)")
if forward or not (built and off):
    sys.exit("changed: the compiler is imported elsewhere")
print("as seen: the first optimizer of a process imports the compiler, also where it is switched off")
PYTHON
