import pytest
import torch

from lgd.detectors.detections import SelectionLimits, keep_detections, to_original_sizes
from tests.detectors.small import make_batch


def find(boxes, scores, labels, *, nms_threshold=0.5, limit=100, reference_order=False):
    """Detect in image 1 of two; in image 0 is one box that overlaps the first exactly."""
    boxes, scores, labels = (torch.tensor([x, x]) for x in (boxes, scores, labels))
    scores[0, 1:] = -torch.inf
    limits = SelectionLimits(2, nms_threshold, limit, reference_order)
    return to_original_sizes(keep_detections(boxes, scores, labels, limits), make_batch([1, 1]))


def detect(boxes, scores, labels, **settings):
    first, second = find(boxes, scores, labels, **settings).cut()
    assert first.labels.tolist() == ([labels[0]] if min(boxes[0][2:]) > 0 else [])
    return second


BOXES = [[0.0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 8], [30, 30, 200, 40]]
SCORES, LABELS = [0.5, 0.9, 0.6, 0.7], [1, 1, 0, 1]


@pytest.mark.parametrize("reference_order", [False, True])
def test_suppression_within_a_class_over_levels(reference_order):
    detections = detect(BOXES, SCORES, LABELS, reference_order=reference_order)
    assert detections.scores.tolist() == torch.tensor([0.9, 0.7, 0.6]).tolist()
    assert detections.labels.tolist() == [1, 1, 0]
    # Image 1 is 57 x 91 on the canvas and twice that originally.
    assert detections.boxes.tolist() == [[0, 0, 20, 18], [60, 60, 182, 80], [0, 0, 20, 16]]


@pytest.mark.parametrize("reference_order", [False, True])
def test_no_suppression(reference_order):
    settings = {"nms_threshold": None, "reference_order": reference_order}
    detections = detect(BOXES, SCORES, LABELS, limit=3, **settings)
    assert detections.scores.tolist() == torch.tensor([0.9, 0.7, 0.6]).tolist()
    assert len(detect(BOXES, SCORES, LABELS, **settings).scores) == 4


def test_boxes_outside_the_image_go_after_the_limit():
    detections = detect([[-9.0, 0, 0, 9], [0, 0, 9, 9], [0, 0, 4, 4]], [0.9, 0.8, 0.7], [0] * 3, limit=2)
    assert detections.scores.tolist() == torch.tensor([0.8]).tolist()


def test_unused_slots_come_last_and_are_zero():
    found = find([[-9.0, 0, 0, 9], [0, 0, 9, 9], [20, 0, 30, 4]], [0.9, 0.8, 0.7], [1, 1, 1])
    assert found.valid.tolist() == [[False] * 3, [True, True, False]]
    for x in (found.boxes, found.scores, found.labels):
        assert not x[~found.valid].any()
        assert x[found.valid].any()


def test_a_box_with_nan_takes_nobodys_place():
    nan = [0.0, 0, torch.nan, 9]
    assert len(detect([[0.0, 0, 9, 9], nan, [20, 0, 24, 4]], [0.7, 0.8, 0.6], [0] * 3, limit=2).scores) == 2
