import math

import pytest
import torch

from lgd.ops.locations import (
    boxes_around,
    center_boxes,
    centerness,
    grid_locations,
    is_inside,
    side_distances,
)

BOX = torch.tensor([10.0, 20.0, 40.0, 60.0])


def test_grid_goes_row_by_row():
    locations = grid_locations(2, 3, 8, offset=0.5, dtype=torch.float64, device="cpu")
    assert locations.tolist() == [[4, 4], [12, 4], [20, 4], [4, 12], [12, 12], [20, 12]]
    assert locations.dtype == torch.float64


def test_grid_with_another_offset():
    locations = grid_locations(1, 2, 16, offset=0.25, dtype=torch.float32, device="cpu")
    assert locations.tolist() == [[4, 4], [20, 4]]


def test_distances_and_back():
    location = torch.tensor([15.0, 50.0])
    distances = torch.stack(side_distances(location, BOX), dim=-1)
    assert distances.tolist() == [5, 30, 25, 10]
    assert torch.equal(boxes_around(location, distances), BOX)


def test_pairs_by_broadcasting():
    locations = torch.rand(7, 2) * 60
    boxes = torch.rand(2, 3, 1, 4) * 60
    distances = side_distances(locations, boxes)
    assert [x.shape for x in distances] == [(2, 3, 7)] * 4
    assert distances[3][1, 2, 4] == boxes[1, 2, 0, 3] - locations[4, 1]


@pytest.mark.parametrize(
    ("location", "inside"),
    [
        ([25, 40], True),
        ([10, 40], False),
        ([40, 40], False),
        ([25, 20], False),
        ([25, 60], False),
        ([5, 5], False),
        ([10.001, 59.999], True),
    ],
)
def test_inside_is_strict(location, inside):
    assert is_inside(torch.tensor(location, dtype=torch.float32), BOX).item() is inside


@pytest.mark.parametrize(
    ("radius", "expected"),
    [
        (0, [10, 20, 40, 60]),
        (12, [13, 28, 37, 52]),
        (18, [10, 22, 40, 58]),
        (100, [10, 20, 40, 60]),
    ],
)
def test_center_boxes(radius, expected):
    assert center_boxes(BOX, radius).tolist() == expected


def test_centerness_by_hand():
    distances = torch.tensor([[5.0, 5, 5, 5], [1, 2, 4, 8], [0, 3, 3, 3], [-2, 3, 8, 3]])
    assert centerness(distances).tolist() == pytest.approx([1, math.sqrt(1 / 4 * 2 / 8), 0, 0])
