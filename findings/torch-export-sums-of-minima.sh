#!/usr/bin/env bash
# A program of torch.export whose sizes are sums of minima takes torch.export.load many times as long as one with plain numbers in their place.
#
# Guess: opening a file is reading it; the time goes with its nodes and its weights. But every size of every tensor is written as the text of its
# term, and opening parses each of them with sympy anew, which sorts and factors the terms of Min. A detector takes min(1000, cells) candidates of
# each of five maps, so that all sizes after that are Min(...) + Min(...) + ..., nested where it selects twice: with a RetinaNet of ResNet-50 for
# any size of picture the file opened in 25 s. With the candidates of each map filled up to 1,000 (torch cancels the minimum in
# min(1000, n) + (1000 - min(1000, n))) it has a few nodes more and opened in 4 s, with the same detections.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-cache-dir torch==2.14.1 numpy==2.4.6
OMP_NUM_THREADS=1 "$folder/venv/bin/python" - <<'PYTHON'
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

LEVELS, BEST, STEPS = 5, 1000, 30


class Selection(nn.Module):
    """The best cells of each of some maps, as detectors choose candidates, and some arithmetic with all of them."""

    def __init__(self, fills):
        super().__init__()
        self.fills = fills

    def forward(self, image):
        parts = []
        for level in range(LEVELS):
            cells = image[:, :: 2**level, :: 2**level].flatten(1)
            best = cells.topk(torch.sym_min(BEST, cells.shape[1]), dim=1).values
            if self.fills:  # as many columns whatever the size of the map
                unused = best.new_full((best.shape[0], BEST - best.shape[1]), -torch.inf)
                best = torch.cat([best, unused], dim=1)
            parts.append(best)
        x = torch.cat(parts, dim=1)
        for _ in range(STEPS):
            x = torch.where(x > 0, x * 2, x + 1)
        return x


print(f"torch {torch.__version__}")
image, dynamic = torch.randn(2, 96, 128), torch.export.Dim.DYNAMIC
seconds = {}
with tempfile.TemporaryDirectory() as folder:
    for fills in (False, True):
        model, path = Selection(fills), Path(folder) / "model.pt2"
        with torch.fx.experimental._config.patch(backed_size_oblivious=True):
            program = torch.export.export(model, (image,), dynamic_shapes=({1: dynamic, 2: dynamic},), strict=False)
        torch.export.save(program, path)
        begin = time.process_time()
        loaded = torch.export.load(path)
        seconds[fills] = time.process_time() - begin
        small = torch.randn(2, 40, 56)
        found = loaded.module(check_guards=False)(small)
        assert torch.equal(found, model(small))
        size = str(program.graph.output_node().args[0][0].meta["val"].shape[1])
        print(f"{'filled up' if fills else 'as many as there are'}: {len(program.graph.nodes)} nodes, {path.stat().st_size // 1024} KiB, "
              f"result of {len(size)} characters ({size[:60]}{'...' if len(size) > 60 else ''}) columns, opened in {seconds[fills]:.1f} s")
ratio = seconds[False] / seconds[True]
if ratio < 4:
    sys.exit(f"changed: the terms cost {ratio:.1f} times as much")
print(f"as seen: with the terms torch.export.load takes {ratio:.0f} times as long")
PYTHON
