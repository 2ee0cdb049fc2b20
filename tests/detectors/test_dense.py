import torch

from lgd.detectors.dense import Candidates, select_as_reference, select_candidates, suppress
from tests.detectors.small import make_batch


def test_candidates_are_sorted_and_limited():
    scores = torch.tensor([[0.1, 0.9], [0.4, 0.05], [0.3, 0.7]])
    positions, labels, best = select_candidates(scores, score_threshold=0.1, limit=3)
    assert (positions.tolist(), labels.tolist()) == ([0, 2, 1], [1, 1, 0])
    assert torch.equal(best, torch.tensor([0.9, 0.7, 0.4]))


def test_equal_scores_keep_their_order():
    scores = torch.full((500, 2), 0.5)
    positions, labels, _ = select_candidates(scores, score_threshold=0.1, limit=5)
    assert (positions.tolist(), labels.tolist()) == ([0, 0, 1, 1, 2], [0, 1, 0, 1, 0])


def suppress_boxes(boxes, scores, labels, **kwargs):
    candidates = Candidates(torch.tensor(boxes), torch.tensor(scores), torch.tensor(labels))
    halves = [
        Candidates(*(getattr(candidates, name)[part] for name in ("boxes", "scores", "labels")))
        for part in (slice(None, 2), slice(2, None))
    ]
    settings = {"nms_threshold": 0.5, "limit": 100}
    return suppress(halves, make_batch([1, 1]), 1, **{**settings, **kwargs})


BOXES = [[0.0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 8], [30, 30, 200, 40]]
SCORES, LABELS = [0.5, 0.9, 0.6, 0.7], [1, 1, 0, 1]


def test_the_references_order_differs_only_in_equal_scores():
    scores = torch.rand(200, 3, generator=torch.Generator().manual_seed(0))
    ours = select_candidates(scores, score_threshold=0.3, limit=150)
    references = select_as_reference(scores, score_threshold=0.3, limit=150)
    assert all(torch.equal(a, b) for a, b in zip(ours, references, strict=True))
    equal = torch.full((200, 3), 0.5)
    positions, labels, chosen = select_as_reference(equal, score_threshold=0.3, limit=150)
    assert len({*zip(positions.tolist(), labels.tolist(), strict=True)}) == 150
    assert (chosen == 0.5).all()


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
