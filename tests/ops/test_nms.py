import torch

from lgd.ops.nms import nms_per_class


def test_suppresses_within_a_class_only_and_sorts():
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 9.0], [0.0, 0.0, 10.0, 9.5]])
    scores = torch.tensor([0.5, 0.9, 0.7])
    assert nms_per_class(boxes, scores, torch.tensor([0, 0, 1]), 0.5).tolist() == [1, 2]


def test_keeps_an_overlap_equal_to_the_threshold():
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 5.0]])
    assert nms_per_class(boxes, torch.tensor([0.9, 0.8]), torch.tensor([0, 0]), 0.5).tolist() == [0, 1]


def test_nothing_in_nothing_out():
    kept = nms_per_class(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), 0.5)
    assert kept.shape == (0,)
