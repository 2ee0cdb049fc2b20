import pytest
import torch

from lgd.ops.anchors import cell_anchors, grid_anchors


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
