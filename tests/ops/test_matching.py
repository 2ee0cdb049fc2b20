import pytest
import torch

from lgd.ops import matching
from lgd.ops.matching import BACKGROUND, FOREGROUND, IGNORED, match_anchors

ANCHORS = torch.tensor(
    [
        [0.0, 0.0, 10.0, 10.0],
        [0.0, 0.0, 10.0, 4.5],
        [0.0, 0.0, 10.0, 3.0],
        [100.0, 100.0, 110.0, 110.0],
    ]
)


def match(boxes, valid=None, anchors=ANCHORS, allow_low_quality=False):
    boxes = torch.tensor(boxes)
    valid = torch.ones(boxes.shape[:2], dtype=torch.bool) if valid is None else torch.tensor(valid)
    return match_anchors(boxes, valid, anchors, thresholds=(0.4, 0.5), allow_low_quality=allow_low_quality)


def iou(a, b):
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [(c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)]
    return width * height / (sum(areas) - width * height)


def match_slowly(boxes, valid, anchors, low, high):
    """One image, one anchor at a time."""
    boxes = [(slot, box) for slot, box in enumerate(boxes) if valid[slot]]
    table = {(slot, j): iou(box, anchor) for slot, box in boxes for j, anchor in enumerate(anchors)}
    best_of_object = {slot: max(table[slot, j] for j in range(len(anchors))) for slot, _ in boxes}
    indices, labels = [], []
    for j in range(len(anchors)):
        best, index = max(((table[slot, j], -slot) for slot, _ in boxes), default=(0.0, 0))
        label = BACKGROUND if best < low else IGNORED if best < high else FOREGROUND
        if any(table[slot, j] == best_of_object[slot] > 0 for slot, _ in boxes):
            label = FOREGROUND
        indices.append(-index)
        labels.append(label)
    return indices, labels


def test_thresholds():
    matches = match([[[0.0, 0.0, 10.0, 10.0]]])
    assert matches.labels.tolist() == [[FOREGROUND, IGNORED, BACKGROUND, BACKGROUND]]


def test_threshold_values_belong_to_the_upper_side():
    anchors = torch.tensor([[0.0, 0.0, 10.0, 5.0], [0.0, 0.0, 10.0, 4.0]], dtype=torch.float64)
    boxes = torch.tensor([[[0.0, 0.0, 10.0, 10.0]]], dtype=torch.float64)
    valid = torch.ones(1, 1, dtype=torch.bool)
    matches = match_anchors(boxes, valid, anchors, thresholds=(0.4, 0.5), allow_low_quality=False)
    assert matches.labels.tolist() == [[FOREGROUND, IGNORED]]


def test_low_quality_rescues_the_best_anchor_whatever_its_overlap():
    matches = match([[[100.0, 100.0, 101.0, 101.0]]], allow_low_quality=True)
    assert matches.labels.tolist() == [[BACKGROUND, BACKGROUND, BACKGROUND, FOREGROUND]]


def test_low_quality_rescues_all_that_tie():
    anchors = torch.tensor([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 4.0], [50.0, 50.0, 54.0, 54.0]])
    matches = match([[[0.0, 0.0, 1.0, 1.0]]], anchors=anchors, allow_low_quality=True)
    assert matches.labels.tolist() == [[FOREGROUND, FOREGROUND, BACKGROUND]]


def test_a_rescued_anchor_keeps_its_own_best_object():
    boxes = [[[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 1.0]]]
    matches = match(boxes, anchors=torch.tensor([[0.0, 0.0, 10.0, 8.0]]), allow_low_quality=True)
    assert matches.labels.tolist() == [[FOREGROUND]]
    assert matches.indices.tolist() == [[0]]


def test_an_object_that_overlaps_nothing_rescues_nothing():
    matches = match([[[500.0, 500.0, 510.0, 510.0]]], allow_low_quality=True)
    assert matches.labels.tolist() == [[BACKGROUND] * 4]


def test_images_without_objects_are_background():
    box = [0.0, 0.0, 10.0, 10.0]
    matches = match([[box, box], [box, box]], valid=[[False, False], [False, True]], allow_low_quality=True)
    assert matches.labels[0].tolist() == [BACKGROUND] * 4
    assert matches.labels[1].tolist() == [FOREGROUND, IGNORED, BACKGROUND, BACKGROUND]
    assert matches.indices[1, 0] == 1


@pytest.mark.parametrize("max_pairs", [1, 500, 2**25])
def test_like_one_at_a_time(monkeypatch, max_pairs):
    """Random boxes on a coarse grid, so that ties are many; in chunks of one, some and all objects."""
    monkeypatch.setattr(matching, "_MAX_PAIRS", max_pairs)
    generator = torch.Generator().manual_seed(1)
    corners = torch.randint(0, 12, (3, 7, 2), generator=generator).double()
    boxes = torch.cat([corners, corners + torch.randint(1, 8, (3, 7, 2), generator=generator)], dim=-1)
    corners = torch.randint(0, 12, (80, 2), generator=generator).double()
    anchors = torch.cat([corners, corners + torch.randint(1, 8, (80, 2), generator=generator)], dim=-1)
    valid = torch.rand(3, 7, generator=generator) < 0.7
    matches = match_anchors(boxes, valid, anchors, thresholds=(0.3, 0.6), allow_low_quality=True)
    for image in range(3):
        indices, labels = match_slowly(
            boxes[image].tolist(), valid[image].tolist(), anchors.tolist(), 0.3, 0.6
        )
        assert matches.labels[image].tolist() == labels
        foreground = matches.labels[image] == FOREGROUND
        assert torch.equal(matches.indices[image][foreground], torch.tensor(indices)[foreground])


def test_anchors_of_their_own_for_each_image():
    torch.manual_seed(0)
    corners = torch.rand(2, 12, 2) * 20
    anchors = torch.cat([corners, corners + 1 + torch.rand(2, 12, 2) * 20], dim=-1)
    boxes, valid = anchors[:, 3:6] + 1, torch.tensor([[True, True, False], [True, True, True]])
    options = {"thresholds": (0.4, 0.6), "allow_low_quality": True}
    together = match_anchors(boxes, valid, anchors, **options)
    for image in range(2):
        alone = match_anchors(boxes[image, None], valid[image, None], anchors[image], **options)
        assert torch.equal(together.indices[image], alone.indices[0])
        assert torch.equal(together.labels[image], alone.labels[0])
