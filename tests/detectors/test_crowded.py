"""Images of 500 boxes, at the size of COCO's training images, two at a time."""

import subprocess
import sys

import pytest

SCRIPT = """
import resource, torch
from lgd.detectors.fcos import FCOSAssigner
from lgd.detectors.atss import ATSSAssigner
from lgd.detectors.points import PointLevel
from lgd.ops.anchors import level_cells, pyramid_anchors
from lgd.ops.locations import grid_locations
from lgd.ops.matching import match_anchors
from lgd.structures import Targets

strides = {f"p{level}": 2**level for level in range(3, 8)}
sizes = {level: (-(-800 // stride), -(-1344 // stride)) for level, stride in strides.items()}
levels = [
    PointLevel(grid_locations(*sizes[k], s, offset=0.5, dtype=torch.float32, device=torch.device("cpu")), s)
    for k, s in strides.items()
]
cells = level_cells([[s, 1.3 * s, 1.6 * s] for s in (32, 64, 128, 256, 512)], [[0.5, 1, 2]], 5).float()
maps = {level: torch.empty(1, 1, *size) for level, size in sizes.items()}
anchors = torch.cat(pyramid_anchors(cells, maps, strides))
corners = torch.rand(2, 500, 2) * torch.tensor([1144.0, 600.0])
boxes = torch.cat([corners, corners + 20 + 180 * torch.rand(2, 500, 2)], dim=-1)
labels = torch.zeros(2, 500, dtype=torch.int64)
targets = Targets(boxes, labels, labels == 0, None)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak()
match_anchors(boxes, targets.valid, anchors, thresholds=(0.4, 0.5), allow_low_quality=True)
FCOSAssigner(1.5, [(-1, 64), (64, 128), (128, 256), (256, 512), (512, 1e9)])(levels, targets, None)
ATSSAssigner(8, 9)(levels, targets, None)
print(peak() - before)
"""


@pytest.mark.slow
def test_matching_and_targets_take_less_than_a_gigabyte():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 1000 / 1.048576  # MiB
