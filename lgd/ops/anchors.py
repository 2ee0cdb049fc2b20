"""Anchor boxes: the cells' shapes, and their grid over a feature map."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def cell_anchors(sizes: Sequence[float], aspect_ratios: Sequence[float]) -> list[list[float]]:
    """Anchors of one cell, centred on (0, 0).

    Args:
        sizes: square roots of the anchors' areas, pixels.
        aspect_ratios: height / width.

    Returns:
        len(sizes) * len(aspect_ratios) boxes, xyxy; sizes outer, ratios inner.
    """
    anchors = []
    for size in sizes:
        for ratio in aspect_ratios:
            width = math.sqrt(size**2 / ratio)
            height = ratio * width
            anchors.append([-width / 2, -height / 2, width / 2, height / 2])
    return anchors


def grid_anchors(cells: Tensor, height: int, width: int, stride: int) -> Tensor:
    """Lay the anchors of one cell over a feature map.

    The cell in row i and column j has its centre at pixel (stride * j, stride * i).

    Args:
        cells: (A, 4) from `cell_anchors`.
        height: rows of the map.
        width: columns of the map.
        stride: pixels per cell.

    Returns:
        (height * width * A, 4) xyxy pixels, in the order row, column, anchor.
    """
    x = torch.arange(width, dtype=cells.dtype, device=cells.device) * stride
    y = torch.arange(height, dtype=cells.dtype, device=cells.device) * stride
    grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
    shifts = torch.stack([grid_x, grid_y, grid_x, grid_y], dim=-1)
    return (shifts[:, :, None] + cells).reshape(-1, 4)
