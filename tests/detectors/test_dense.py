import pytest
import torch

from lgd.detectors.dense import select_as_reference, select_candidates


def select(levels, **settings):
    settings = {"score_threshold": 0.1, "limits": [3] * len(levels), **settings}
    return select_candidates([level.logit() for level in levels], **settings)


def rows(candidates):
    """(image, position, label, score) of each used slot."""
    images, slots = (candidates.logits > -torch.inf).nonzero(as_tuple=True)
    scores = candidates.logits.sigmoid().mul(1e6).round().div(1e6)
    columns = (candidates.positions, candidates.labels, scores)
    columns = (images, *(column[images, slots] for column in columns))
    return [*zip(*(column.tolist() for column in columns), strict=True)]


def test_candidates_are_sorted_and_limited():
    scores = torch.tensor([[[0.1, 0.9], [0.4, 0.05], [0.3, 0.7]]], dtype=torch.float64)
    assert rows(select([scores])) == [(0, 0, 1, 0.9), (0, 2, 1, 0.7), (0, 1, 0, 0.4)]


def test_each_level_of_each_image_has_its_own_limit():
    fine = [[[0.2, 0.3], [0.5, 0.4]], [[0.0, 0.1], [0.1, 0.0]], [[0.9, 0.8], [0.7, 0.6]]]
    coarse = [[[0.6, 0.0]], [[0.2, 0.3]], [[0.0, 0.0]]]
    levels = [torch.tensor(scores, dtype=torch.float64) for scores in (fine, coarse)]
    found = select(levels, limits=[2, 1], score_threshold=0.11)
    assert rows(found) == [
        (0, 1, 0, 0.5), (0, 1, 1, 0.4), (0, 2, 0, 0.6), (1, 2, 1, 0.3), (2, 0, 0, 0.9), (2, 0, 1, 0.8)
    ]  # fmt: skip
    assert found.logits.shape == (3, 3)


@pytest.mark.parametrize("num_classes", [1, 2, 7])
@pytest.mark.parametrize("limit", [1, 5, 200, 5000])
@pytest.mark.parametrize("threshold", [0.4, 0.0], ids=["only what is used", "fixed slots"])
def test_a_batch_is_that_of_its_images_alone_and_equals_come_in_order(num_classes, limit, threshold):
    generator = torch.Generator().manual_seed(limit)
    levels = [
        torch.randint(-8, 9, (3, size, num_classes), generator=generator).double() for size in (700, 90, 1)
    ]
    limits = [limit, limit // 2 + 1, 5]
    together = select_candidates(levels, limits=limits, score_threshold=threshold)
    alone = []
    for image in range(3):
        for level, offset, most in zip(levels, (0, 700, 790), limits, strict=True):
            found = [
                (-score, offset + position, label)
                for position, scores in enumerate(level[image].sigmoid().tolist())
                for label, score in enumerate(scores)
                if score > threshold
            ]
            alone += [(image, place, label, round(-score, 6)) for score, place, label in sorted(found)[:most]]
    assert rows(together) == alone


def test_nothing_above_the_threshold():
    found = select([torch.zeros(2, 5, 3), torch.zeros(2, 1, 3)])
    assert found.positions.shape == (2, 0)
    assert rows(found) == []


def test_what_is_no_number_takes_nobodys_place():
    scores = torch.tensor([[[torch.nan, torch.nan], [0.4, 0.05], [0.3, 0.7]]], dtype=torch.float64)
    assert [row[1:] for row in rows(select([scores], limits=[2]))] == [(2, 1, 0.7), (1, 0, 0.4)]


def test_equal_scores_keep_their_order():
    found = select([torch.full((1, 500, 2), 0.5)], limits=[5])
    assert (found.positions.tolist(), found.labels.tolist()) == ([[0, 0, 1, 1, 2]], [[0, 1, 0, 1, 0]])


@pytest.mark.parametrize("sort_all", [False, True])
def test_the_references_order_differs_only_in_equal_scores(sort_all):
    generator = torch.Generator().manual_seed(0)
    levels = [torch.rand(2, 200, 3, generator=generator), torch.rand(2, 20, 3, generator=generator)]
    settings = {"score_threshold": 0.6, "limits": [150, 100]}
    ours = select_candidates(levels, **settings)
    assert rows(ours) == rows(select_as_reference(levels, **settings, sort_all=sort_all))
    equal = select_as_reference(
        [torch.full((1, 200, 3), 0.5)], score_threshold=0.3, limits=[150], sort_all=sort_all
    )
    assert len({*zip(equal.positions[0].tolist(), equal.labels[0].tolist(), strict=True)}) == 150
    assert (equal.logits == 0.5).all()


def test_what_rounds_to_the_same_score_is_told_apart():
    logits = torch.tensor([[[40.0], [60.0], [50.0]]])
    found = select_candidates([logits], score_threshold=0.1, limits=[3])
    assert found.positions.tolist() == [[1, 2, 0]]
