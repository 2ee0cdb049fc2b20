import pytest
import torch

from lgd.export.check import HALF_TOLERANCE, Comparison, Tolerance, compare, join_comparisons
from lgd.structures import Detections

LIMITS = {"score_threshold": 0.05, "nms_threshold": 0.5, "detections": 4}
BOXES = [[0.0, 0.0, 10.0, 10.0], [20.0, 0.0, 40.0, 10.0], [0.0, 50.0, 30.0, 90.0]]


def detections(boxes, scores, labels=None, masks=None):
    labels = [0] * len(scores) if labels is None else labels
    return Detections(
        torch.tensor(boxes).view(-1, 4), torch.tensor(scores), torch.tensor(labels, dtype=torch.int64), masks
    )


def hold(ours, theirs):
    return compare(ours, theirs, Tolerance(), LIMITS)


def test_places_do_not_matter_but_numbers_do():
    ours = detections(BOXES, [0.9, 0.8, 0.7])
    moved = [BOXES[1], [0.0, 0.0, 10.0, 10.0005], BOXES[2]]
    found = hold(ours, detections(moved, [0.80002, 0.9, 0.7]))
    assert (found.matched, found.unmatched, found.ties) == (3, 0, 0)
    assert found.pixels == pytest.approx(5e-4, rel=0.01)
    assert found.score == pytest.approx(2e-5, rel=0.01)
    assert found.is_within(Tolerance())


@pytest.mark.parametrize(
    ("boxes", "scores", "labels"),
    [
        (BOXES[:2], [0.9, 0.8], [0, 0]),  # one is missing
        ([*BOXES, [60.0, 60.0, 70.0, 70.0]], [0.9, 0.8, 0.7, 0.6], [0] * 4),  # one too many
        ([*BOXES[:2], [0.0, 50.0, 30.0, 90.1]], [0.9, 0.8, 0.69], [0] * 3),  # another box
        (BOXES, [0.9, 0.8, 0.71], [0] * 3),  # another score
        (BOXES, [0.9, 0.8, 0.7], [0, 0, 1]),  # another class
    ],
)
def test_what_is_not_the_same(boxes, scores, labels):
    found = hold(detections(BOXES, [0.9, 0.8, 0.7]), detections(boxes, scores, labels))
    assert found.matched == 3 - (0 if len(boxes) > 3 else 1)
    assert found.unmatched > 0
    assert not found.is_within(Tolerance())


def test_how_far_it_is_from_the_same():
    shifted = torch.tensor(BOXES) + 1
    found = hold(detections(BOXES, [0.9, 0.8, 0.7]), detections(shifted.tolist(), [0.88, 0.8, 0.7]))
    assert found.pixels == 1
    assert found.score == pytest.approx(0.02)
    assert not found.is_within(Tolerance())


def test_what_lies_at_a_limit_is_a_tie():
    ours, low = detections(BOXES, [0.9, 0.8, 0.05004]), detections(BOXES[:2], [0.9, 0.8])
    assert (hold(ours, low).ties, hold(low, ours).ties, hold(ours, low).unmatched) == (1, 1, 0)
    full = [*BOXES, [60.0, 60.0, 70.0, 70.0]]
    other = [*BOXES, [80.0, 60.0, 95.0, 70.0]]
    found = hold(detections(full, [0.9, 0.8, 0.7, 0.6]), detections(other, [0.9, 0.8, 0.7, 0.60005]))
    assert (found.matched, found.ties, found.unmatched) == (3, 2, 0)


def test_of_equally_good_boxes_either_may_stay_but_not_everywhere():
    one, other = [0.0, 0.0, 10.0, 10.0], [1.0, 0.0, 11.0, 10.0]
    tied = hold(detections([one], [0.9]), detections([other], [0.9]))
    assert (tied.matched, tied.ties, tied.unmatched) == (0, 2, 0)
    assert not tied.is_within(Tolerance())
    assert join_comparisons([tied, Comparison(9, matched=200)]).is_within(Tolerance())


def test_nothing_is_like_nothing():
    assert hold(detections([], []), detections([], [])).is_within(Tolerance())
    assert not hold(detections(BOXES, [0.9, 0.8, 0.7]), detections([], [])).is_within(Tolerance())


def test_masks_and_sums():
    masks = torch.zeros(3, 4, 4)
    other = masks.clone()
    other[1, 2, 2] = 0.25
    found = hold(
        detections(BOXES, [0.9, 0.8, 0.7], masks=masks), detections(BOXES, [0.9, 0.8, 0.7], masks=other)
    )
    assert found.mask == 0.25
    both = join_comparisons([found, Comparison(2, 5, 1, 3, 0.5, 0.25, 0.125)])
    assert both == Comparison(3, 8, 1, 3, 0.5, 0.25, 0.25)
    assert str(both).startswith("3 pictures: 8 boxes matched, 1 unmatched, 3 tied; largest difference 0.5 px")


def test_float16_may_lack_a_few():
    few = Comparison(9, matched=200, unmatched=3)
    assert few.is_within(HALF_TOLERANCE)
    assert not few.is_within(Tolerance())
    assert not Comparison(9, matched=200, unmatched=5).is_within(HALF_TOLERANCE)
