"""Locations of anchor-free detectors: their grid, and boxes as distances from them to the four sides.

`...` are leading dimensions, which broadcast. Boxes are xyxy; all is in pixels of the canvas.
"""

from __future__ import annotations

import torch
from torch import Tensor


def grid_locations(
    height: int, width: int, stride: int, *, offset: float, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Lay one location into every cell of a feature map.

    Args:
        height: rows of the map.
        width: columns of the map.
        stride: pixels per cell.
        offset: where in its cell a location lies, in [0, 1] strides.
        dtype: of the result.
        device: of the result.

    Returns:
        (height * width, 2) x y, row by row.
    """
    x = (torch.arange(width, dtype=dtype, device=device) + offset) * stride
    y = (torch.arange(height, dtype=dtype, device=device) + offset) * stride
    grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([grid_x, grid_y], dim=-1).view(-1, 2)


def side_distances(locations: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Measure from `locations` (..., 2) to the sides of `boxes` (..., 4).

    Returns:
        Left, top, right and bottom, each (...); all positive inside the box.
    """
    x, y = locations.unbind(-1)
    x1, y1, x2, y2 = boxes.unbind(-1)
    return x - x1, y - y1, x2 - x, y2 - y


def boxes_around(locations: Tensor, distances: Tensor) -> Tensor:
    """Make boxes (..., 4) by the distances of their sides from a location: the inverse of `side_distances`.

    Args:
        locations: (..., 2) x y.
        distances: (..., 4) left top right bottom.
    """
    return torch.cat([locations - distances[..., :2], locations + distances[..., 2:]], dim=-1)


def is_inside(locations: Tensor, boxes: Tensor) -> Tensor:
    """Whether each of `locations` (..., 2) lies strictly inside its box of `boxes` (..., 4): (...) bool."""
    left, top, right, bottom = side_distances(locations, boxes)
    return (left > 0) & (top > 0) & (right > 0) & (bottom > 0)


def center_boxes(boxes: Tensor, radius: float) -> Tensor:
    """Cut `boxes` (..., 4) to the square of half side `radius` around their centres.

    A radius of 0 leaves them whole (FCOS, arXiv 1904.01355, with and without centre sampling).
    """
    if radius == 0:
        return boxes
    centers = (boxes[..., :2] + boxes[..., 2:]) / 2
    return torch.cat(
        [torch.maximum(centers - radius, boxes[..., :2]), torch.minimum(centers + radius, boxes[..., 2:])],
        dim=-1,
    )


def centerness(distances: Tensor) -> Tensor:
    """How central locations are in their boxes (FCOS, arXiv 1904.01355, eq. 3).

    Args:
        distances: (..., 4) left top right bottom.

    Returns:
        (...) 1 at the centre, 0 on the border and outside; not a number for a box without extent.
    """
    left, top, right, bottom = distances.unbind(-1)
    horizontal = (torch.minimum(left, right) / torch.maximum(left, right)).clamp(min=0)
    vertical = (torch.minimum(top, bottom) / torch.maximum(top, bottom)).clamp(min=0)
    return (horizontal * vertical).sqrt()
