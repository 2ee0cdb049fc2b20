"""Anchor boxes: the cells' shapes, and their grid over a feature map."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lgd.structures import Features
from lgd.words import counted


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


def level_cells(
    sizes: Sequence[Sequence[float]], aspect_ratios: Sequence[Sequence[float]], num_levels: int
) -> Tensor:
    """Make the anchors of one cell for every level of a pyramid.

    Args:
        sizes: as in `cell_anchors`, a row by level, or one row for every level.
        aspect_ratios: likewise.
        num_levels: L.

    Returns:
        (L, A, 4) float64.

    Raises:
        ValueError: rows that don't fit the levels, or levels with unequally many anchors.
    """
    for name, rows in (("anchor_sizes", sizes), ("aspect_ratios", aspect_ratios)):
        if len(rows) not in (1, num_levels):
            raise ValueError(
                f"{name} has {counted(len(rows), 'row')} for {counted(num_levels, 'level')}; give 1 or "
                f"{num_levels}"
            )
    per_level = [
        cell_anchors(sizes[level % len(sizes)], aspect_ratios[level % len(aspect_ratios)])
        for level in range(num_levels)
    ]
    counts = [len(cells) for cells in per_level]
    if len(set(counts)) != 1 or counts[0] == 0:
        raise ValueError(f"all levels share one head, so their anchors must be equally many, not {counts}")
    return torch.tensor(per_level, dtype=torch.float64)


def pyramid_anchors(
    cells: Tensor, features: Features, strides: Mapping[str, int], offset: float = 0.0
) -> list[Tensor]:
    """Lay the anchors of every level over its map.

    Args:
        cells: (L, A, 4) from `level_cells`, in the dtype wanted.
        features: maps (B, C, h_l, w_l) by level.
        strides: pixels per cell of the L levels.
        offset: as in `grid_anchors`.

    Returns:
        (h_l * w_l * A, 4) xyxy pixels for each level.
    """
    return [
        grid_anchors(cells_of_level, features[level].shape[-2], features[level].shape[-1], stride, offset)
        for cells_of_level, (level, stride) in zip(cells, strides.items(), strict=True)
    ]


def grid_anchors(cells: Tensor, height: int, width: int, stride: int, offset: float = 0.0) -> Tensor:
    """Lay the anchors of one cell over a feature map.

    The cell in row i and column j has its centre at pixel (stride * (j + offset), stride * (i + offset)).

    Args:
        cells: (A, 4) from `cell_anchors`.
        height: rows of the map.
        width: columns of the map.
        stride: pixels per cell.
        offset: of the centres, in cells.

    Returns:
        (height * width * A, 4) xyxy pixels, in the order row, column, anchor.
    """
    x = (torch.arange(width, dtype=cells.dtype, device=cells.device) + offset) * stride
    y = (torch.arange(height, dtype=cells.dtype, device=cells.device) + offset) * stride
    grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
    shifts = torch.stack([grid_x, grid_y, grid_x, grid_y], dim=-1)
    return (shifts[:, :, None] + cells).reshape(-1, 4)
