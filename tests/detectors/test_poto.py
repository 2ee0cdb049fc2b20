import itertools
import math

import pytest
import torch

from lgd.detectors.point_head import PointPredictions
from lgd.detectors.points import PointLevel
from lgd.detectors.poto import POTOAssigner
from lgd.structures import Targets
from tests.detectors.scenes import (
    in_center,
    locations_and_strides,
    make_levels,
    make_predictions,
    make_targets,
    objects_of,
    overlap,
)


def rate_slowly(assigner, levels, targets, predictions, image):
    """{slot: [quality by location]}."""
    table = {}
    for slot, box in objects_of(targets, image):
        label, row = targets.labels[image, slot].item(), []
        for a, ((x, y), stride) in enumerate(locations_and_strides(levels)):
            left, top, right, bottom = predictions.distances[image, a].tolist()
            score = 1 / (1 + math.exp(-predictions.logits[image, a, label].item()))
            iou = overlap((x - left, y - top, x + right, y + bottom), box)
            inside = in_center((x, y), box, assigner.center_radius * stride)
            row.append(score ** (1 - assigner.alpha) * iou**assigner.alpha if inside else -1)
        table[slot] = row
    return table


def best_choice(table):
    """{slot: location} of largest total, by trying all; no object needs more than its n best locations."""
    slots = list(table)
    options = [
        sorted(range(len(row)), key=row.__getitem__, reverse=True)[: len(slots)] for row in table.values()
    ]
    choices = (choice for choice in itertools.product(*options) if len(set(choice)) == len(slots))
    best = max(choices, key=lambda choice: sum(table[s][a] for s, a in zip(slots, choice, strict=True)))
    return dict(zip(slots, best, strict=True))


@pytest.mark.parametrize("radius", [1.5, 0])
@pytest.mark.parametrize("alpha", [0.8, 0.3])
def test_like_slowly(radius, alpha):
    assigner = POTOAssigner(alpha=alpha, center_radius=radius)
    levels, targets = make_levels(64, 64), make_targets([5, 0, 1, 4], scale=0.35)
    predictions = make_predictions(levels, 4)
    matches = assigner(levels, targets, predictions)
    for image in range(4):
        chosen = {slot: a for a, slot in enumerate(matches[image].tolist()) if slot >= 0}
        assert chosen == best_choice(rate_slowly(assigner, levels, targets, predictions, image))


def assign(boxes, labels, logits, *, center_radius=1.5):
    """On a row of locations 4, 12, 20, ... whose predicted boxes are 8 x 8 around them."""
    logits = torch.tensor([logits], dtype=torch.float64)
    x = torch.arange(logits.shape[1], dtype=torch.float64) * 8 + 4
    level = PointLevel(torch.stack([x, torch.full_like(x, 4)], dim=-1), 8)
    boxes = torch.tensor([boxes], dtype=torch.float64)
    targets = Targets(boxes, torch.tensor([labels]), torch.ones(boxes.shape[:2]) > 0)
    distances = torch.full((*logits.shape[:2], 4), 4.0, dtype=torch.float64)
    return POTOAssigner(0.8, center_radius)([level], targets, PointPredictions(logits, distances, None))[
        0
    ].tolist()


def test_score_and_overlap_by_hand():
    box = [0.0, 0, 16, 8]
    assert assign([box], [0], [[0.0], [0.1], [9.0]]) == [-1, 0, -1]  # the third is outside
    assert assign([box], [1], [[0.0, 0.2], [0.1, 0.1], [0, 0]]) == [0, -1, -1]  # the object's class counts
    assert assign([[1.0, 0, 17, 8]], [0], [[0.2], [0.1], [0.0]]) == [-1, 0, -1]  # so does the overlap


def test_the_whole_is_best_not_each():
    """Both objects want the first location; the one with the worse alternative gets it."""
    boxes, labels = [[0.0, 0, 16, 8], [0.0, 0, 12, 8]], [0, 0]
    assert assign(boxes, labels, [[2.0], [2.0], [0.0]]) == [1, 0, -1]


def test_an_object_without_location_inside_still_gets_one():
    matches = assign([[5.0, 5, 6, 6]], [0], [[0.0], [0.0]])
    assert sorted(matches) == [-1, 0]


def test_more_objects_than_locations():
    first, second = assign([[0.0, 0, 16, 8]] * 5, [0] * 5, [[0.0], [0.0]])
    assert first != second
    assert min(first, second) >= 0


def test_predictions_gone_astray_are_left_to_the_loss():
    assert assign([[0.0, 0, 16, 8]], [0], [[math.nan], [0.0], [0.0]]) == [-1, 0, -1]
