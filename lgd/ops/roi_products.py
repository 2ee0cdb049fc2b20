"""RoIAlign on a CPU: two small products for each region.

A bin is the mean of bilinear samples on a grid, in which rows and columns weigh independently: a region's
bins (M, M) are weights (M, h) times its cells (h, w) times weights (w, M). Torchvision's operator adds up
sample by sample, four to ten times as slowly, and on one thread too.
Legend: L levels of C x h_l x w_l, R regions of the whole batch, M the side of a region's map, T the cells of
the largest region along an axis.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def products_pay(features: Sequence[Tensor], boxes: Tensor) -> bool:
    """Whether `pool_by_products` can be had and is the faster way, for maps of bfloat16 too."""
    return (
        boxes.is_cpu
        and boxes.dtype in (torch.float32, torch.float64)
        and all(x.dtype in (boxes.dtype, torch.bfloat16) for x in features)
        and not torch.compiler.is_compiling()
    )


def pool_by_products(
    features: Sequence[Tensor],
    strides: Sequence[int],
    boxes: Tensor,
    images: Tensor,
    levels: Tensor,
    *,
    resolution: int,
    sampling_ratio: int,
) -> Tensor:
    """Pool each region from its level; no gradient flows into the boxes.

    Args:
        features: L maps (B, C, h_l, w_l).
        strides: of the maps.
        boxes: (R, 4) xyxy pixels of the canvas; finite.
        images: (R,) int64 in [0, B).
        levels: (R,) int64 in [0, L).
        resolution: M.
        sampling_ratio: samples of a bin along a side; 0 for as many as the bin has cells.

    Returns:
        (R, C, M, M), in the order of the boxes.
    """
    with torch.no_grad():
        cells = boxes / boxes.new_tensor(strides)[levels, None] - 0.5
        columns, rows = (
            _weigh(
                cells[:, axis],
                cells[:, axis + 2] - cells[:, axis],
                levels.new_tensor([x.shape[3 - axis] for x in features])[levels],
                resolution,
                sampling_ratio,
            )
            for axis in (0, 1)
        )
    regions = _Regions(levels.tolist(), images.tolist(), rows, columns)
    result: Tensor = _Products.apply(regions, resolution, *features)
    return result


@dataclass(frozen=True)
class _Axis:
    """How the cells of each region count along one axis.

    Attributes:
        starts: of R regions, the first cell that counts.
        stops: the cell after the last one.
        weights: (R, M, T) of the cells from the first on in each bin; 0 after the last one.
    """

    starts: list[int]
    stops: list[int]
    weights: Tensor


@dataclass(frozen=True)
class _Regions:
    """Where R regions lie.

    Attributes:
        levels: in [0, L).
        images: in [0, B).
        rows, columns: their cells.
    """

    levels: list[int]
    images: list[int]
    rows: _Axis
    columns: _Axis

    def cut(self, maps: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield each region's part (h, w, C) of its map (B, h_l, w_l, C), and its weights (M, h), (M, w)."""
        rows, columns = self.rows, self.columns
        places = zip(
            self.levels, self.images, rows.starts, rows.stops, columns.starts, columns.stops, strict=True
        )
        weights = zip(rows.weights.unbind(), columns.weights.unbind(), strict=True)
        for (level, image, top, bottom, left, right), (down, across) in zip(places, weights, strict=True):
            part = maps[level][image, top:bottom, left:right]
            yield part, down[:, : bottom - top], across[:, : right - left]


def _weigh(start: Tensor, extent: Tensor, side: Tensor, resolution: int, sampling_ratio: int) -> _Axis:
    """Weigh the cells along one axis, from where R regions start, what they measure, and the map's side.

    Samples up to a cell outside the map count as on its border, those further out as 0.
    """
    start, last = start[:, None, None], side[:, None, None] - 1
    bins = extent[:, None, None] / resolution
    counts = torch.full_like(bins, sampling_ratio) if sampling_ratio else bins.ceil().clamp(min=0)
    most = max([1, *counts.flatten().long().tolist()])
    samples = torch.arange(most, dtype=start.dtype, device=start.device)
    numbers = torch.arange(resolution, dtype=start.dtype, device=start.device)[:, None]
    points = start + numbers * bins + (samples + 0.5) * bins / counts.clamp(min=1)
    count = (samples < counts) & (points >= -1) & (points <= last + 1)
    points = torch.where(count, points, 0).clamp(min=0).minimum(last.to(points.dtype))
    low = points.long()
    high = (low + 1).minimum(last)
    starts = torch.where(count, low, last).amin(dim=(1, 2))
    stops = torch.where(count, high + 1, 0).amax(dim=(1, 2)).maximum(starts)
    weights = points.new_zeros(len(points), resolution, max([1, *(stops - starts).tolist()]))
    share, beyond = count / counts.clamp(min=1), points - low
    for cell, weight in ((low, share * (1 - beyond)), (high, share * beyond)):
        # What does not count weighs nothing, wherever it is put.
        weights.scatter_add_(2, (cell - starts[:, None, None]).clamp(0, weights.shape[2] - 1), weight)
    return _Axis(starts.tolist(), stops.tolist(), weights)


class _Products(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, regions: _Regions, resolution: int, *features: Tensor) -> Tensor:
        ctx.regions, ctx.shapes = regions, [x.shape for x in features]
        channels = features[0].shape[1]
        bins = features[0].new_empty(len(regions.levels), channels, resolution, resolution)
        maps = [x.permute(0, 2, 3, 1).contiguous() for x in features]
        with _one_thread():
            for result, (part, rows, columns) in zip(bins.unbind(), regions.cut(maps), strict=True):
                across = torch.bmm(columns.expand(len(part), -1, -1), part)
                found = rows @ across.flatten(1)
                result.copy_(found.view(resolution, resolution, channels).permute(2, 0, 1))
        return bins

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        maps = [grad.new_zeros(b, h, w, c) for b, c, h, w in ctx.shapes]
        with _one_thread():
            for given, (part, rows, columns) in zip(grad.unbind(), ctx.regions.cut(maps), strict=True):
                across = rows.T @ given.permute(1, 2, 0).flatten(1)
                across = across.view(len(part), columns.shape[0], part.shape[2])
                part += torch.bmm(columns.T.expand(len(part), -1, -1), across)
        return None, None, *(x.permute(0, 3, 1, 2) for x in maps)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep to the calling thread: what is done to a region is too little to wait for others."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)
