"""Features of regions from the levels of a pyramid.

Legend: B images, L levels of C x h x w, R regions of the whole batch, M the side of a region's map.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import roi_align

from lgd.ops.boxes import box_area
from lgd.ops.finite import replace_non_finite
from lgd.ops.roi_products import pool_by_products, products_pay

_CANONICAL_SIZE, _CANONICAL_LEVEL = 224.0, 4
_EPS = 1e-8


def assign_levels(boxes: Tensor, strides: Sequence[int]) -> Tensor:
    """Choose the level of each region by its size (arXiv 1612.03144, eq. 1).

    Args:
        boxes: (R, 4) xyxy pixels.
        strides: of the levels, fine to coarse, each twice the one before.

    Returns:
        (R,) int64 in [0, L): a region of 224 x 224 pixels goes to stride 16, one of half the side to the
        level before.
    """
    finest = int(math.log2(strides[0]))
    levels = torch.floor(_CANONICAL_LEVEL + torch.log2(box_area(boxes).sqrt() / _CANONICAL_SIZE + _EPS))
    return levels.clamp(finest, finest + len(strides) - 1).long() - finest


def multilevel_roi_align(
    features: Sequence[Tensor],
    strides: Sequence[int],
    boxes: Tensor,
    images: Tensor,
    *,
    resolution: int,
    sampling_ratio: int,
    sample_by_sample: bool = False,
) -> Tensor:
    """Pool each region from the level that fits its size, by RoIAlign (arXiv 1703.06870) on cell centres.

    Args:
        features: L maps (B, C, h_l, w_l), fine to coarse.
        strides: of the maps, each twice the one before.
        boxes: (R, 4) xyxy pixels of the canvas.
        images: (R,) int64 in [0, B), the image that each box lies in.
        resolution: M.
        sampling_ratio: samples of a bin along a side; 0 for as many as the bin has cells.
        sample_by_sample: leave it to torchvision's operator on a CPU, too: the same up to the order of sums.

    Returns:
        (R, C, M, M), in the order of the boxes.
    """
    mark: Tensor | float = 0.0
    if boxes.is_cpu:
        boxes, mark = replace_non_finite(boxes, rows=True)
    levels = assign_levels(boxes, strides)
    rois = torch.cat([images[:, None].to(boxes.dtype), boxes], dim=1)
    if torch.compiler.is_exporting():
        return _pool_from_all(features, strides, rois, levels, resolution, sampling_ratio)
    if not sample_by_sample and products_pay(features, boxes):
        maps = [x.to(boxes.dtype) for x in features]
        with torch.autocast("cpu", enabled=False):
            result = pool_by_products(
                maps, strides, boxes, images, levels, resolution=resolution, sampling_ratio=sampling_ratio
            ).to(features[0].dtype)
        return result if mark == 0.0 else result + mark
    order = levels.argsort()
    rois = rois[order]
    pooled = [
        roi_align(x, part, resolution, 1 / stride, sampling_ratio, aligned=True)
        for x, stride, part in zip(
            features, strides, torch.split(rois, _count(levels, len(strides))), strict=True
        )
    ]
    joined = torch.cat(pooled)
    if mark != 0.0:  # false on other devices, without a look
        joined = joined + mark
    return torch.zeros_like(joined).index_put((order,), joined)  # index_copy would keep `joined` for backward


def _count(levels: Tensor, num_levels: int) -> list[int]:
    """Regions of each level: a host sync, so that each level is asked for its own regions only."""
    counts: list[int] = (levels[:, None] == torch.arange(num_levels, device=levels.device)).sum(0).tolist()
    return counts


def _pool_from_all(
    features: Sequence[Tensor],
    strides: Sequence[int],
    rois: Tensor,
    levels: Tensor,
    resolution: int,
    sampling_ratio: int,
) -> Tensor:
    """Pool every region (R, 5) from every level and take that of its own: no size depends on a value.

    From the other levels it pools a single cell, which costs least; so it does for regions without area, of
    which some runtimes make NaN.
    """
    has_area = (rois[:, 3:] > rois[:, 1:3]).all(dim=1)
    result = features[0].new_zeros(())
    for level, (x, stride) in enumerate(zip(features, strides, strict=True)):
        cell = rois.new_tensor([0.0, 0.0, 0.0, stride, stride])
        mine = (levels == level) & has_area
        part = torch.where(mine[:, None], rois, cell)
        pooled = roi_align(x, part, resolution, 1 / stride, sampling_ratio, aligned=True)
        result = torch.where(mine[:, None, None, None], pooled, result)
    return result
