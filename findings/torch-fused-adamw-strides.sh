#!/usr/bin/env bash
# torch's fused AdamW on a CPU takes numbers in the order of memory: after a resume in another memory layout its updates are wrong, without a word.
#
# Guess: fused=True is a faster way to the same numbers, as foreach is, and a tensor's strides are nobody's business but torch's. Weights that
# become channels_last after a checkpoint was written (a recipe's switch, another machine) load well: load_state_dict copies into them. The
# optimizer's states are not copied but taken as they were saved, contiguous, and the fused kernel of a CPU pairs each weight with the moments
# of another. foreach and the plain loop look at strides and are right. Nothing fails: the loss is a little worse for a while.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-cache-dir torch==2.14.1 numpy==2.4.6
OMP_NUM_THREADS=1 "$folder/venv/bin/python" - <<'PYTHON'
import copy
import sys

import torch
from torch import nn

print(f"torch {torch.__version__}")
RATE = 0.01


def make(channels_last):
    net = nn.Conv2d(8, 16, 3)
    return net.to(memory_format=torch.channels_last) if channels_last else net


def train(net, optimizer, steps):
    torch.manual_seed(1)
    for _ in range(steps):
        optimizer.zero_grad()
        net(torch.randn(4, 8, 16, 16)).square().mean().backward()
        optimizer.step()


torch.manual_seed(0)
first = make(False)
optimizer = torch.optim.AdamW(first.parameters(), lr=RATE)
train(first, optimizer, 20)
weights, states = first.state_dict(), optimizer.state_dict()

found = {}
for channels_last in (False, True):
    for way in ("foreach", "fused"):
        net = make(channels_last)
        net.load_state_dict(weights)
        optimizer = torch.optim.AdamW(net.parameters(), lr=RATE)
        optimizer.load_state_dict(copy.deepcopy(states))
        for group in optimizer.param_groups:
            group["foreach"], group["fused"] = way == "foreach", way == "fused"
        train(net, optimizer, 1)
        found[channels_last, way] = net.weight.detach().clone()
        differs = float((found[channels_last, way] - found[False, "foreach"]).abs().max())
        moments = optimizer.state[net.weight]["exp_avg"]
        print(f"channels_last {channels_last}, {way}: weights {net.weight.stride()}, moments {moments.stride()}, one step differs by {differs:.1e}")

right = found[False, "foreach"]
if any(not torch.allclose(found[key], right, atol=1e-6) for key in ((False, "fused"), (True, "foreach"))):
    sys.exit("changed: these were the same")
wrong = float((found[True, "fused"] - right).abs().max())
if wrong < RATE / 10:
    sys.exit("changed: the fused step is right in this layout, too")
print(f"as seen: one fused step after the resume is wrong by up to {wrong / RATE:.2f} of the learning rate")
PYTHON
