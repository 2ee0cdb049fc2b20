"""Outlines to pixels by the rule of COCO's masks, for many objects at once.

The rule (rleFrPoly of the COCO API): corners are rounded to fifths of a pixel; an edge visits every fifth on
its longer axis; where it steps between the third and the fourth fifth of a pixel column, the column is
toggled from the row of the step's upper end on. So an edge toggles a column once or not at all, at a row that
follows from the edge alone.

Legend: P objects, E edges of an object, B images with N object slots each, H x W the canvas, h x w a level.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_FIFTHS = 5
_MIN_SIDE = 0.1
_MAX_ELEMENTS = 2**20
"""Of the largest tensor held at a time (8 MiB in float64: memory stays bounded, and a CPU's caches help)."""


@torch.no_grad()
def rasterize_in_boxes(edges: Tensor, parts: Tensor, num_parts: int, boxes: Tensor, size: int) -> Tensor:
    """Rasterise each object on a grid over a box of its own, as Mask R-CNN's targets (detectron2's).

    Args:
        edges: (P, E, 4) x1 y1 x2 y2, pixels; edges without extent are none.
        parts: (P, E) int64 in [0, num_parts), the part of each edge (see `lgd.structures.Outlines`).
        num_parts: the most parts of an object.
        boxes: (P, 4) xyxy, pixels; sides below 0.1 count as 0.1.
        size: rows and columns of the grid.

    Returns:
        (P, size, size) bool. Computed in float64 whatever the type of `edges`.
    """
    edges, boxes = edges.double(), boxes.double()
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=_MIN_SIDE)
    scale = torch.full_like(sides, size) / sides  # size / sides would multiply by the rounded reciprocal
    edges = (edges - boxes[:, None, :2].repeat(1, 1, 2)) * scale[:, None].repeat(1, 1, 2)
    columns = torch.arange(size, device=edges.device)
    masks = torch.empty(len(edges), size, size, dtype=torch.bool, device=edges.device)
    for chunk in _chunks(edges, num_parts, size, size):
        crossed, rows = _crossings(edges[chunk], columns)
        masks[chunk] = _fill(crossed, rows.clamp(0, size), parts[chunk], num_parts, size)
    return masks


@torch.no_grad()
def rasterize_on_grid(
    edges: Tensor,
    parts: Tensor,
    num_parts: int,
    sizes: Tensor,
    canvas: tuple[int, int],
    grid: tuple[int, int],
) -> Tensor:
    """Rasterise objects at their image's size, pad to the canvas, resize to a level by the nearest pixel.

    Cell (i, j) of the level is pixel (floor(i H / h), floor(j W / w)) of the canvas; only these are computed.

    Args:
        edges: (B, N, E, 4) x1 y1 x2 y2, pixels of the canvas; edges without extent are none.
        parts: (B, N, E) int64 in [0, num_parts), the part of each edge (see `lgd.structures.Outlines`).
        num_parts: the most parts of an object.
        sizes: (B, 2) int64, (height, width) of the images.
        canvas: (H, W).
        grid: (h, w).

    Returns:
        (B, N, h, w) bool. Computed in float64 whatever the type of `edges`.
    """
    num_images, num_slots = edges.shape[:2]
    edges, parts = edges.double().flatten(0, 1), parts.flatten(0, 1)
    columns = torch.arange(grid[1], device=edges.device) * canvas[1] // grid[1]
    masks = torch.empty(num_images * num_slots, *grid, dtype=torch.bool, device=edges.device)
    for chunk in _chunks(edges, num_parts, *grid):
        crossed, rows = _crossings(edges[chunk], columns)
        # The first level row whose pixel row is not above the crossing.
        cells = (rows.clamp(0, canvas[0]) * grid[0] + canvas[0] - 1) // canvas[0]
        masks[chunk] = _fill(crossed, cells, parts[chunk], num_parts, grid[0])
    return masks.view(num_images, num_slots, *grid) & image_area(sizes, canvas, grid)[:, None]


def image_area(sizes: Tensor, canvas: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Mark the cells of a level whose pixel, as in `rasterize_on_grid`, is the image's and not padding.

    Args:
        sizes: (B, 2) int64, (height, width) of the images.
        canvas: (H, W).
        grid: (h, w).

    Returns:
        (B, h, w) bool.
    """
    rows, columns = (
        torch.arange(cells, device=sizes.device) * pixels // cells < sizes[:, axis, None]
        for axis, (pixels, cells) in enumerate(zip(canvas, grid, strict=True))
    )
    return rows[:, :, None] & columns[:, None, :]


def mask_edges(mask: Tensor) -> Tensor:
    """Find the edges of a mask, (h, w) bool, as those of run lengths: the borders above and below its runs.

    Returns:
        (E, 4) float64 x1 y1 x2 y2, pixels: one part, which gives the mask back to the pixel.
    """
    borders = F.pad(mask.to(torch.int8), (1, 1, 1, 1)).diff(dim=0).abs()
    turns = borders.diff(dim=1)
    y, x = (turns > 0).nonzero(as_tuple=True)
    _, end = (turns < 0).nonzero(as_tuple=True)
    return torch.stack([x, y, end, y], dim=1).double()


def _chunks(edges: Tensor, num_parts: int, num_rows: int, num_columns: int) -> list[slice]:
    """Slices of the objects that keep the tensors of one small."""
    per_object = num_columns * max(edges.shape[1], num_parts * (num_rows + 1))
    count = max(1, _MAX_ELEMENTS // per_object)
    return [slice(start, start + count) for start in range(0, len(edges), count)]


def _crossings(edges: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Find where edges toggle pixel columns.

    All is done in the order of the COCO API's operations: where a step ends may hang on the last bit.

    Args:
        edges: (P, E, 4) float64, pixels.
        columns: (C,) int64, at least 0.

    Returns:
        (P, E, C) bool, which columns are toggled, and (P, E, C) int64, the row from which on: not clipped to
        the image, and without meaning where nothing is toggled.
    """
    x1, y1, x2, y2 = (_FIFTHS * edges + 0.5).trunc()[..., None].unbind(-2)
    steep = (x2 - x1).abs() < (y2 - y1).abs()
    backwards = torch.where(steep, y1 > y2, x1 > x2)
    x1, y1, x2, y2 = (torch.where(backwards, b, a) for a, b in ((x1, x2), (y1, y2), (x2, x1), (y2, y1)))
    rise, run = torch.where(steep, x2 - x1, y2 - y1), torch.where(steep, y2 - y1, x2 - x1)
    slope = rise / run.clamp(min=1)
    # The step from fifth `left` to the next, in either direction.
    left = (_FIFTHS * columns + 2).to(edges.dtype)
    crossed = (torch.minimum(x1, x2) <= left) & (torch.maximum(x1, x2) > left)
    # Steps along the longer axis. On a flat edge `left` and its neighbour are steps, and the upper of the two
    # is wanted; on a steep one the first step beyond `left` is: this one or, if it is not beyond, the next.
    offset = torch.where(steep, 0.5, (slope < 0).to(edges.dtype))
    step = ((left - x1 + offset) / torch.where(steep & (slope != 0), slope, 1)).round()
    across = torch.where(steep, x1, y1) + slope * step + 0.5
    beyond = (across >= left + 1) == (slope > 0)
    fifth = torch.where(steep, y1 + step - beyond.to(edges.dtype), across.trunc())
    return crossed, (fifth.long() + 2) // _FIFTHS


def _fill(crossed: Tensor, rows: Tensor, parts: Tensor, num_parts: int, num_rows: int) -> Tensor:
    """Toggle columns downwards and unite the parts.

    Args:
        crossed: (P, E, C) bool, which columns an edge toggles.
        rows: (P, E, C) int64 in [0, num_rows], from which row on.
        parts: (P, E) int64 in [0, num_parts).
        num_parts: of an object.
        num_rows: of the result.

    Returns:
        (P, num_rows, C) bool.
    """
    num_objects, _, num_columns = crossed.shape
    part = torch.arange(num_objects, device=parts.device)[:, None] * num_parts + parts
    column = part[..., None] * num_columns + torch.arange(num_columns, device=parts.device)
    bins = column * (num_rows + 1) + rows
    shape = (num_objects, num_parts, num_columns, num_rows + 1)
    toggles = torch.zeros(shape, dtype=torch.int32, device=parts.device)
    toggles.view(-1).scatter_add_(0, bins.flatten(), crossed.flatten().int())
    inside = toggles[..., :num_rows].cumsum(dim=-1, dtype=torch.int32) & 1
    return inside.bool().any(dim=1).transpose(1, 2)
