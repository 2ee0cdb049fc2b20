import statistics

import pytest
import torch

from lgd.detectors import points
from lgd.detectors.atss import ATSSAssigner
from lgd.structures import Targets
from tests.detectors.scenes import in_center, make_levels, make_targets, objects_of, overlap


def assign_slowly(assigner, levels, targets):
    num_locations = sum(len(level.locations) for level in levels)
    matches = torch.full((len(targets.boxes), num_locations), -1)
    for image in range(len(targets.boxes)):
        best = [-1.0] * num_locations
        for slot, box in objects_of(targets, image):
            candidates, before = [], 0
            for level in levels:
                cx, cy = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
                rows = level.locations.tolist()
                nearest = sorted(
                    range(len(rows)), key=lambda i: (rows[i][0] - cx) ** 2 + (rows[i][1] - cy) ** 2
                )
                half = assigner.anchor_scale * level.stride / 2
                for i in nearest[: assigner.num_nearest]:
                    x, y = rows[i]
                    anchor = (x - half, y - half, x + half, y + half)
                    candidates.append((before + i, (x, y), overlap(anchor, box)))
                before += len(rows)
            overlaps = [value for *_, value in candidates]
            threshold = statistics.mean(overlaps) + statistics.stdev(overlaps)
            for location, xy, value in candidates:
                if value >= threshold and in_center(xy, box, 0) and value > best[location]:
                    best[location], matches[image, location] = value, slot
    return matches


@pytest.mark.parametrize("num_nearest", [9, 3])
def test_like_slowly(num_nearest):
    assigner = ATSSAssigner(anchor_scale=4, num_nearest=num_nearest)
    levels, targets = make_levels(), make_targets([30, 0, 1, 4])
    matches = assigner(levels, targets, None)
    assert (matches >= 0).sum() > 40
    assert torch.equal(matches, assign_slowly(assigner, levels, targets))


def test_in_chunks(monkeypatch):
    assigner, levels, targets = ATSSAssigner(8, 9), make_levels(), make_targets([30, 7], whole_pixels=True)
    whole = assigner(levels, targets, None)
    monkeypatch.setattr(points, "_MAX_PAIRS", 4000)
    assert torch.equal(assigner(levels, targets, None), whole)


def assign_boxes(levels, *boxes, anchor_scale=2, num_nearest=4):
    boxes = torch.tensor([boxes], dtype=torch.float64)
    targets = Targets(boxes, torch.zeros(boxes.shape[:2], dtype=torch.int64), torch.ones(boxes.shape[:2]) > 0)
    return ATSSAssigner(anchor_scale, num_nearest)(levels, targets, None)[0]


def test_by_hand():
    """Anchors of 16 pixels: the one that is the object has IoU 1, the three beside it 1/3, 1/3 and 1/7."""
    matches = assign_boxes(make_levels(64, 64)[:1], [12.1, 12.1, 28.1, 28.1])
    assert (matches >= 0).nonzero().tolist() == [[2 * 8 + 2]]


def test_the_larger_overlap_wins_and_the_first_of_equals():
    levels = make_levels(64, 64)[:1]
    assert assign_boxes(levels, [10.0, 12, 27, 28], [12, 12, 28, 28])[2 * 8 + 2] == 1
    assert assign_boxes(levels, [12, 12, 28, 28], [12, 12, 28, 28])[2 * 8 + 2] == 0


def test_levels_of_fewer_locations_give_what_they_have():
    matches = assign_boxes(make_levels(64, 64), [12, 12, 44, 44], anchor_scale=8, num_nearest=9)
    assert (matches >= 0).any()
    single = assign_boxes(make_levels(64, 64)[-1:], [50, 50, 90, 90])
    assert single.tolist() == [0]


def test_an_object_without_area_gets_no_location():
    assert (assign_boxes(make_levels(64, 64), [20, 20, 20, 20], [12, 8, 12, 60]) == -1).all()
