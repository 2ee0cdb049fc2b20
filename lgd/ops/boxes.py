"""Boxes in xyxy pixels: areas, overlaps, deltas, clipping and scaling.

Every function works on any leading (batch) dimensions, written `...`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MAX_LOG_SCALE = math.log(1000.0 / 16.0)
"""Largest dw or dh that `decode_deltas` follows, so that exp() cannot overflow."""


def box_area(boxes: Tensor) -> Tensor:
    """Compute areas of `boxes` (..., 4): (...), square pixels."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def box_iou(boxes_a: Tensor, boxes_b: Tensor) -> Tensor:
    """Intersection over union of every pair.

    Args:
        boxes_a: (..., N, 4) xyxy.
        boxes_b: (..., M, 4) xyxy; leading dimensions broadcast against those of `boxes_a`.

    Returns:
        (..., N, M) in [0, 1]; 0 where the boxes don't overlap, so also for boxes without area.
    """
    # Each side by itself in memory: the pairs read them many times.
    left_a, top_a, right_a, bottom_a = boxes_a.movedim(-1, 0).contiguous().unsqueeze(-1).unbind()
    left_b, top_b, right_b, bottom_b = boxes_b.movedim(-1, 0).contiguous().unsqueeze(-2).unbind()
    widths = (torch.minimum(right_a, right_b) - torch.maximum(left_a, left_b)).clamp(min=0)
    heights = (torch.minimum(bottom_a, bottom_b) - torch.maximum(top_a, top_b)).clamp(min=0)
    intersection = widths * heights
    areas_a, areas_b = (right_a - left_a) * (bottom_a - top_a), (right_b - left_b) * (bottom_b - top_b)
    union = areas_a + areas_b - intersection
    return torch.where(intersection > 0, intersection / union, 0)


def _centers_and_sizes(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """(..., 4) xyxy -> centers (..., 2) and sizes (..., 2), each (x, y)."""
    sizes = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + 0.5 * sizes, sizes


def encode_deltas(
    anchors: Tensor, boxes: Tensor, weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
) -> Tensor:
    """Express `boxes` relative to `anchors` (R-CNN, arXiv 1311.2524, eq. 6-9).

    Args:
        anchors: (..., 4) xyxy of positive width and height.
        boxes: (..., 4) xyxy of positive width and height; broadcasts against `anchors`.
        weights: factors of (dx, dy, dw, dh).

    Returns:
        (..., 4): centre offsets in anchor sizes and log size ratios, times `weights`.
    """
    anchor_centers, anchor_sizes = _centers_and_sizes(anchors)
    box_centers, box_sizes = _centers_and_sizes(boxes)
    offsets = (box_centers - anchor_centers) / anchor_sizes
    log_ratios = torch.log(box_sizes / anchor_sizes)
    deltas = [*offsets.unbind(-1), *log_ratios.unbind(-1)]
    return torch.stack([delta * weight for delta, weight in zip(deltas, weights, strict=True)], dim=-1)


def encode_foreground(
    anchors: Tensor,
    boxes: Tensor,
    foreground: Tensor,
    weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0),
) -> Tensor:
    """`encode_deltas` where `foreground` says so, and 0 elsewhere, where boxes without area give no NaN.

    Args:
        anchors: (..., 4) xyxy.
        boxes: (..., 4) xyxy.
        foreground: (...) bool; what it selects has positive width and height.
        weights: factors of (dx, dy, dw, dh).

    Returns:
        (..., 4) deltas.
    """
    unit = (torch.arange(4, device=boxes.device) > 1).to(boxes.dtype)
    anchors, boxes = (torch.where(foreground[..., None], x, unit) for x in (anchors, boxes))
    return encode_deltas(anchors, boxes, weights)


def decode_deltas(
    anchors: Tensor, deltas: Tensor, weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
) -> Tensor:
    """Invert `encode_deltas`, with dw and dh held at `MAX_LOG_SCALE`.

    Args:
        anchors: (..., 4) xyxy.
        deltas: (..., 4); broadcasts against `anchors`.
        weights: as given to `encode_deltas`.

    Returns:
        (..., 4) xyxy, not clipped to any image.
    """
    dx, dy, dw, dh = (delta / weight for delta, weight in zip(deltas.unbind(-1), weights, strict=True))
    centers, sizes = _centers_and_sizes(anchors)
    new_centers = torch.stack([dx, dy], dim=-1) * sizes + centers
    half = 0.5 * (torch.exp(torch.stack([dw, dh], dim=-1).clamp(max=MAX_LOG_SCALE)) * sizes)
    return torch.cat([new_centers - half, new_centers + half], dim=-1)


def clip_boxes(boxes: Tensor, size: Tensor) -> Tensor:
    """Clip `boxes` to images.

    Args:
        boxes: (..., 4) xyxy pixels.
        size: (..., 2) (height, width) in pixels; broadcasts against the boxes' leading dimensions.

    Returns:
        (..., 4) with x in [0, width] and y in [0, height].
    """
    xy_limits = size.to(boxes.dtype).flip(-1)
    return torch.minimum(boxes.clamp(min=0), torch.cat([xy_limits, xy_limits], dim=-1))


def scale_boxes(boxes: Tensor, scale: Tensor) -> Tensor:
    """Multiply `boxes` (..., 4) by `scale` (..., 2), the factors of (y, x)."""
    xy_scale = scale.to(boxes.dtype).flip(-1)
    return boxes * torch.cat([xy_scale, xy_scale], dim=-1)
