import pytest
import torch

from lgd.detectors.dense import Candidates, select_as_reference, select_candidates, suppress
from tests.detectors.small import make_batch


def select(levels, **settings):
    settings = {"score_threshold": 0.1, "limits": [3] * len(levels), **settings}
    return select_candidates(levels, **settings)


def rows(candidates):
    """(image, position, label, score) of each."""
    columns = (candidates.images, candidates.positions, candidates.labels, candidates.scores)
    return [*zip(*(column.tolist() for column in columns), strict=True)]


def test_candidates_are_sorted_and_limited():
    scores = torch.tensor([[[0.1, 0.9], [0.4, 0.05], [0.3, 0.7]]], dtype=torch.float64)
    assert rows(select([scores])) == [(0, 0, 1, 0.9), (0, 2, 1, 0.7), (0, 1, 0, 0.4)]


def test_each_level_of_each_image_has_its_own_limit():
    fine = [[[0.2, 0.3], [0.5, 0.4]], [[0.0, 0.1], [0.1, 0.0]], [[0.9, 0.8], [0.7, 0.6]]]
    coarse = [[[0.6, 0.0]], [[0.2, 0.3]], [[0.0, 0.0]]]
    levels = [torch.tensor(scores, dtype=torch.float64) for scores in (fine, coarse)]
    found = select(levels, limits=[2, 1])
    assert rows(found) == [
        (0, 1, 0, 0.5), (0, 1, 1, 0.4), (0, 2, 0, 0.6), (1, 2, 1, 0.3), (2, 0, 0, 0.9), (2, 0, 1, 0.8)
    ]  # fmt: skip
    assert found.counts == [3, 1, 2]


@pytest.mark.parametrize("stable", [False, True])
def test_a_batch_is_that_of_its_images_alone(stable):
    generator = torch.Generator().manual_seed(0)
    levels = [torch.rand((3, size, 2), generator=generator).mul(20).round().div(20) for size in (700, 90, 1)]
    together = select(levels, limits=[200, 50, 5], score_threshold=0.4, stable=stable)
    alone = []
    for image in range(3):
        for level in (0, 1, 2):
            scores = levels[level][image]
            positions, labels = (scores > 0.4).nonzero(as_tuple=True)
            chosen, order = scores[positions, labels].sort(descending=True, stable=stable)
            order = order[: (200, 50, 5)[level]]
            offset = (0, 700, 790)[level]
            alone += [
                (image, offset + int(positions[place]), int(labels[place]), float(value))
                for place, value in zip(order, chosen[: len(order)], strict=True)
            ]
    assert rows(together) == alone


def test_nothing_above_the_threshold():
    found = select([torch.zeros(2, 5, 3), torch.zeros(2, 1, 3)])
    assert found.counts == [0, 0]
    assert rows(found) == []
    for detections in suppress(torch.zeros(0, 4), found, make_batch([1, 1]), nms_threshold=0.5, limit=9):
        assert detections.boxes.shape == (0, 4)


def test_equal_scores_keep_their_order():
    found = select([torch.full((1, 500, 2), 0.5)], limits=[5])
    assert (found.positions.tolist(), found.labels.tolist()) == ([0, 0, 1, 1, 2], [0, 1, 0, 1, 0])


def test_the_references_order_differs_only_in_equal_scores():
    generator = torch.Generator().manual_seed(0)
    levels = [torch.rand(2, 200, 3, generator=generator), torch.rand(2, 20, 3, generator=generator)]
    settings = {"score_threshold": 0.3, "limits": [150, 100]}
    ours, references = select_candidates(levels, **settings), select_as_reference(levels, **settings)
    assert rows(ours) == rows(references)
    assert ours.counts == references.counts
    equal = select_as_reference([torch.full((1, 200, 3), 0.5)], score_threshold=0.3, limits=[150])
    assert len({*zip(equal.positions.tolist(), equal.labels.tolist(), strict=True)}) == 150
    assert (equal.scores == 0.5).all()


def suppress_boxes(boxes, scores, labels, **settings):
    """Suppress these boxes in image 1 of two; in image 0 is one box that overlaps the first exactly."""
    boxes, scores, labels = (torch.tensor([x[0], *x]) for x in (boxes, scores, labels))
    candidates = Candidates([1, len(scores) - 1], torch.zeros_like(labels), labels, scores)
    first, second = suppress(
        boxes, candidates, make_batch([1, 1]), **{"nms_threshold": 0.5, "limit": 100, **settings}
    )
    assert first.labels.tolist() == ([int(labels[0])] if (boxes[0, 2:] > 0).all() else [])
    return second


BOXES = [[0.0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 8], [30, 30, 200, 40]]
SCORES, LABELS = [0.5, 0.9, 0.6, 0.7], [1, 1, 0, 1]


def test_suppression_within_a_class_over_levels():
    detections = suppress_boxes(BOXES, SCORES, LABELS)
    assert detections.scores.tolist() == torch.tensor([0.9, 0.7, 0.6]).tolist()
    assert detections.labels.tolist() == [1, 1, 0]
    # Image 1 is 57 x 91 on the canvas and twice that originally.
    assert detections.boxes.tolist() == [[0, 0, 20, 18], [60, 60, 182, 80], [0, 0, 20, 16]]


def test_no_suppression():
    detections = suppress_boxes(BOXES, SCORES, LABELS, nms_threshold=None, limit=3)
    assert detections.scores.tolist() == torch.tensor([0.9, 0.7, 0.6]).tolist()
    assert len(suppress_boxes(BOXES, SCORES, LABELS, nms_threshold=None).scores) == 4


def test_boxes_outside_the_image_go_after_the_limit():
    detections = suppress_boxes(
        [[-9.0, 0, 0, 9], [0, 0, 9, 9], [0, 0, 4, 4]], [0.9, 0.8, 0.7], [0] * 3, limit=2
    )
    assert detections.scores.tolist() == torch.tensor([0.8]).tolist()
