import math

import pytest
import torch

from lgd.detectors import points
from lgd.detectors.fcos import FCOSAssigner
from lgd.structures import Targets
from tests.detectors.scenes import in_center, locations_and_strides, make_levels, make_targets, objects_of

RANGES = ((-1, 32), (32, 64), (64, 96), (96, 128), (128, math.inf))


def assign_slowly(assigner, levels, targets):
    ranges = dict(zip((level.stride for level in levels), assigner.size_ranges, strict=True))
    matches = []
    for image in range(len(targets.boxes)):
        row = []
        for (x, y), stride in locations_and_strides(levels):
            low, high = ranges[stride]
            candidates = [
                ((x2 - x1) * (y2 - y1), slot)
                for slot, (x1, y1, x2, y2) in objects_of(targets, image)
                if in_center((x, y), (x1, y1, x2, y2), assigner.center_radius * stride)
                and low <= max(x - x1, y - y1, x2 - x, y2 - y) <= high
            ]
            row.append(min(candidates)[1] if candidates else -1)
        matches.append(row)
    return torch.tensor(matches)


@pytest.mark.parametrize("radius", [1.5, 0, 0.5])
@pytest.mark.parametrize("whole_pixels", [False, True])
def test_like_slowly(radius, whole_pixels):
    assigner = FCOSAssigner(radius, RANGES)
    levels, targets = make_levels(), make_targets([30, 0, 1, 4], whole_pixels=whole_pixels)
    matches = assigner(levels, targets, None)
    assert (matches >= 0).sum() > 25
    assert torch.equal(matches, assign_slowly(assigner, levels, targets))


def test_in_chunks(monkeypatch):
    assigner, levels, targets = FCOSAssigner(1.5, RANGES), make_levels(), make_targets([30, 7])
    whole = assigner(levels, targets, None)
    monkeypatch.setattr(points, "_MAX_PAIRS", 4000)
    assert torch.equal(assigner(levels, targets, None), whole)


def assign_boxes(*boxes):
    """Matches of the finest level of one image of 64 x 64, by row and column."""
    boxes = torch.tensor([boxes], dtype=torch.float64)
    targets = Targets(boxes, torch.zeros(boxes.shape[:2], dtype=torch.int64), torch.ones(boxes.shape[:2]) > 0)
    return FCOSAssigner(1.5, RANGES)(make_levels(64, 64), targets, None)[0, :64].view(8, 8)


def test_by_hand():
    matches = assign_boxes([8.0, 8, 40, 40])  # centre 24, 24: centre box from 12 to 36, exclusive
    assert (matches >= 0).nonzero().tolist() == [[i, j] for i in (2, 3) for j in (2, 3)]


def test_the_smaller_object_wins_and_the_first_of_equals():
    assert assign_boxes([8, 8, 40, 40], [12, 12, 36, 36])[2, 2] == 1
    assert assign_boxes([8, 8, 40, 40], [8, 8, 40, 40])[2, 2] == 0


def test_an_object_without_area_gets_no_location():
    assert (assign_boxes([20, 20, 20, 20], [12, 8, 12, 60]) == -1).all()


def test_range_ends_belong_to_both_levels():
    """An object whose farthest side is 32 pixels away is for p3 and p4."""
    boxes = torch.tensor([[[12.0, 12.0, 40.0, 40.0]]], dtype=torch.float64)
    targets = Targets(boxes, torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1) > 0)
    levels = make_levels(64, 64)
    ranges = ((-1, 16), (16, 16), (16, 64), (64, 128), (128, math.inf))
    # From (24, 24) of p4 the farthest sides are 16 away.
    matches = FCOSAssigner(1.5, ranges)(levels, targets, None)[0]
    assert matches[64:80].view(4, 4).tolist()[1][1] == 0
    assert (matches[64:80] >= 0).sum() == 1


def test_a_range_the_wrong_way_round():
    with pytest.raises(ValueError, match=r"range of sizes \(64, 32\) is empty; give \(lowest, highest\)"):
        FCOSAssigner(1.5, ((64, 32),))
