import pytest
import torch

from lgd.ops import nms
from lgd.ops.boxes import box_iou
from lgd.ops.nms import keep_best, keep_best_by_image, nms_per_class


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


KEEPERS = [keep_best, keep_best_by_image]


def make_candidates(num_images=3, count=60, num_groups=4):
    torch.manual_seed(0)
    corners = torch.rand(num_images, count, 2, dtype=torch.float64) * 30
    sides = 5 + 20 * torch.rand(num_images, count, 2, dtype=torch.float64)
    scores = torch.rand(num_images, count, dtype=torch.float64)
    groups = torch.randint(0, num_groups, (count,))
    return torch.cat([corners, corners + sides], dim=-1), scores, groups


def keep_slowly(boxes, scores, groups, threshold, limit):
    """One image, one box at a time."""
    kept = []
    for index in scores.argsort(descending=True).tolist():
        overlaps = [box_iou(boxes[index, None], boxes[other, None]).item() for other in kept]
        same = [groups[index] == groups[other] for other in kept]
        if scores[index] > -torch.inf and not any(
            a and b > threshold for a, b in zip(same, overlaps, strict=True)
        ):
            kept.append(index)
    return kept[:limit]


@pytest.mark.parametrize("keep", KEEPERS)
@pytest.mark.parametrize("limit", [5, 25, 1000])
def test_the_best_of_each_image(keep, limit):
    boxes, scores, groups = make_candidates()
    scores[1, 10:] = -torch.inf
    scores[2] = -torch.inf
    indices, valid = keep(boxes, scores, groups, 4, 0.4, limit)
    assert indices.shape == valid.shape == (3, min(limit, 60))
    for image in range(3):
        expected = keep_slowly(boxes[image], scores[image], groups, 0.4, limit)
        assert indices[image][valid[image]].tolist() == expected
        assert valid[image].tolist() == [True] * len(expected) + [False] * (len(valid[0]) - len(expected))
    assert not valid[2].any()


@pytest.mark.parametrize("keep", KEEPERS)
def test_what_does_not_count_suppresses_nothing(keep):
    boxes = torch.tensor([[[0.0, 0.0, 10.0, 10.0]] * 2])
    indices, valid = keep(boxes, torch.tensor([[-torch.inf, 0.3]]), torch.tensor([0, 0]), 1, 0.5, 2)
    assert indices[valid].tolist() == [1]


def test_of_equal_scores_the_first_wins():
    boxes = torch.arange(0.0, 40000.0, 40.0)[None, :, None] + torch.tensor([0.0, 0.0, 10.0, 10.0])
    indices, valid = keep_best(boxes, torch.zeros(1, 1000), torch.zeros(1000).long(), 1, 0.5, 20)
    assert valid.all()
    assert indices.tolist() == [list(range(20))]


@pytest.mark.parametrize("num_others", [0, 1500])
def test_an_infinite_box_and_negative_coordinates_change_nothing_for_others(num_others):
    """Torchvision's `batched_nms` moves classes apart by the largest coordinate, from 0."""
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [-90, 0, 5, 5], [-torch.inf, 0, 9, torch.inf]])
    others = 1000 + 20.0 * torch.arange(num_others)[:, None].expand(-1, 4) + torch.tensor([0.0, 0, 9, 9])
    groups = torch.cat([torch.tensor([0, 0, 1, 1]), torch.zeros(num_others).long()])
    scores = torch.linspace(1, 0.1, 4 + num_others)[None]
    indices, valid = keep_best(torch.cat([boxes, others])[None], scores, groups, 2, 0.5, 9999)
    assert indices[valid].tolist() == [0, 2, 3, *range(4, 4 + num_others)]


def test_many_boxes_are_suppressed_as_few_are(monkeypatch):
    boxes, scores, groups = make_candidates()
    scores[1, ::3] = -torch.inf
    together = keep_best(boxes, scores, groups, 4, 0.4, 100)
    monkeypatch.setattr(nms, "_MAX_TOGETHER_ON_CPU", 50)
    for a, b in zip(keep_best(boxes, scores, groups, 4, 0.4, 100), together, strict=True):
        assert torch.equal(a, b)
    by_image = keep_best(boxes, scores, groups.expand(3, -1), 4, 0.4, 100)
    assert torch.equal(by_image[1], together[1])
    assert not together[1].all()


def test_the_operator_says_what_it_gives_without_data():
    arguments = (*make_candidates(), 4, 0.4, 100)
    boxes, scores, groups, *rest = arguments
    torch.library.opcheck(nms.find_survivors, (boxes, scores, groups.expand_as(scores).contiguous(), *rest))
