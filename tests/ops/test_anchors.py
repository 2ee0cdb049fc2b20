import pytest
import torch

from lgd.ops.anchors import cell_anchors, grid_anchors, level_cells, pyramid_anchors


def test_cells_by_hand():
    cells = cell_anchors([32, 64], [0.25, 1.0])
    assert cells == [[-32, -8, 32, 8], [-16, -16, 16, 16], [-64, -16, 64, 16], [-32, -32, 32, 32]]


def test_ratio_is_height_over_width_and_keeps_the_area():
    ((x1, y1, x2, y2),) = cell_anchors([50], [2.0])
    assert (y2 - y1) / (x2 - x1) == pytest.approx(2.0)
    assert (y2 - y1) * (x2 - x1) == pytest.approx(2500)


def test_grid_goes_by_row_column_anchor():
    cells = torch.tensor([[-1.0, -2.0, 1.0, 2.0], [-4.0, -4.0, 4.0, 4.0]], dtype=torch.float64)
    anchors = grid_anchors(cells, height=2, width=3, stride=8)
    expected = [
        [x + cell[0], y + cell[1], x + cell[2], y + cell[3]]
        for y in (0, 8)
        for x in (0, 8, 16)
        for cell in cells.tolist()
    ]
    assert anchors.dtype == torch.float64
    assert anchors.tolist() == expected


def test_offset_moves_the_centres_by_parts_of_a_cell():
    cells = torch.tensor([[-1.0, -2.0, 1.0, 2.0]], dtype=torch.float64)
    shifted = grid_anchors(cells, 2, 2, 8, offset=0.5)
    assert torch.equal(shifted, grid_anchors(cells, 2, 2, 8) + 4)


def test_levels_have_their_own_rows_or_share_one():
    cells = level_cells([[8], [16]], [[1.0]], 2)
    assert cells.dtype == torch.float64
    assert cells.tolist() == [[[-4, -4, 4, 4]], [[-8, -8, 8, 8]]]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [([[8], [16]], "anchor_sizes has 2 rows for 3 levels"), ([[8], [16], [8, 9]], r"not \[1, 1, 2\]")],
)
def test_rows_that_do_not_fit_the_levels(sizes, message):
    with pytest.raises(ValueError, match=message):
        level_cells(sizes, [[1.0]], 3)


def test_pyramid():
    features = {"p2": torch.zeros(1, 5, 2, 3), "p3": torch.zeros(1, 5, 1, 2)}
    cells = level_cells([[8], [16]], [[1.0]], 2)
    fine, coarse = pyramid_anchors(cells, features, {"p2": 4, "p3": 8}, 0.5)
    assert torch.equal(fine, grid_anchors(cells[0], 2, 3, 4, 0.5))
    assert torch.equal(coarse, grid_anchors(cells[1], 1, 2, 8, 0.5))
