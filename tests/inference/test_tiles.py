"""Tiles: they cover the picture, and what they find is put together."""

from itertools import pairwise

import pytest
import torch

from lgd.data.transforms import Window
from lgd.inference.tiles import Tiling, merge_tiles
from lgd.structures import Detections


def found(*rows):
    """Detections of rows x1, y1, x2, y2, score, label."""
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    return Detections(table[:, :4], table[:, 4], table[:, 5].long())


def rows_of(detections):
    columns = [detections.boxes, detections.scores[:, None], detections.labels[:, None]]
    return torch.cat([column.float() for column in columns], dim=1).tolist()


@pytest.mark.parametrize(("height", "width"), [(100, 1000), (513, 640), (2000, 1999), (512, 513)])
@pytest.mark.parametrize("overlap", [0, 0.2, 0.5])
def test_tiles_cover_all_and_overlap_enough(height, width, overlap):
    whole, *tiles = Tiling(512, overlap).windows(height, width)
    assert whole == Window(0, 0, height, width)
    seen = torch.zeros(height, width, dtype=torch.bool)
    for top, left, rows, columns in tiles:
        assert (rows, columns) == (min(512, height), min(512, width))
        assert top >= 0 <= left
        assert top + rows <= height
        assert left + columns <= width
        seen[top : top + rows, left : left + columns] = True
    assert seen.all()
    lefts = sorted({tile.left for tile in tiles})
    assert all(b - a <= 512 * (1 - overlap) + 1 for a, b in pairwise(lefts))


def test_a_small_picture_is_its_only_tile():
    assert Tiling(512).windows(512, 300) == [Window(0, 0, 512, 300)]


@pytest.mark.parametrize(("size", "overlap"), [(0, 0.2), (31, 0.2), (512, 1.0), (512, -0.1)])
def test_impossible_tiles_are_refused(size, overlap):
    with pytest.raises(ValueError, match="tiles is"):
        Tiling(size, overlap)


LEFT, RIGHT = Window(0, 0, 100, 100), Window(0, 60, 100, 100)


def merge(left, right):
    return rows_of(merge_tiles([found(*left), found(*right)], [LEFT, RIGHT], 100, 160))


def test_the_same_object_in_two_tiles_is_one():
    merged = merge([(70, 10, 90, 30, 0.6, 0)], [(10, 10, 30, 30, 0.75, 0), (10, 10, 30, 30, 0.5, 1)])
    assert merged == [[70, 10, 90, 30, 0.75, 0], [70, 10, 90, 30, 0.5, 1]]


def test_a_cut_piece_gives_way_to_the_whole_even_if_its_score_is_better():
    piece, whole = (70, 10, 100, 50, 0.9375, 0), (10, 10, 80, 50, 0.5, 0)
    assert merge([piece], [whole]) == [[70, 10, 140, 50, 0.5, 0]]


def test_a_cut_piece_that_nothing_explains_stays():
    assert merge([(70, 10, 100, 50, 0.9375, 0)], []) == [[70, 10, 100, 50, 0.9375, 0]]


def test_the_pictures_own_border_cuts_nothing():
    small, large = (0, 0, 20, 20, 0.75, 0), (0, 0, 24, 24, 0.5, 0)
    assert merge([small, large], []) == [[0, 0, 20, 20, 0.75, 0]]


def test_a_small_object_in_a_large_one_stays():
    assert len(merge([(10, 10, 80, 80, 0.75, 0), (20, 20, 40, 40, 0.5, 0)], [])) == 2


def test_masks_go_with_their_boxes():
    left, right = found((10, 10, 30, 30, 0.5, 0)), found((50, 10, 70, 30, 0.75, 0))
    left = Detections(left.boxes, left.scores, left.labels, torch.zeros(1, 4, 4))
    right = Detections(right.boxes, right.scores, right.labels, torch.ones(1, 4, 4))
    merged = merge_tiles([left, right], [LEFT, RIGHT], 100, 160)
    assert merged.masks[:, 0, 0].tolist() == [1.0, 0.0]


def test_nothing_found_is_nothing():
    assert merge([], []) == []
