"""Instance masks: from probabilities over a box to a bitmap of the image and its run lengths.

Legend: D detections of one image of h x w pixels; M x M the grid of a mask over its box; R the run borders.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import hotcoco
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

RunLengthMask = dict[str, list[int] | str]
"""COCO's compressed RLE, as JSON can hold it: {"size": [h, w], "counts": text}."""

_PIXELS_AT_ONCE = 2**25


@dataclass(frozen=True)
class _Pasted:
    """Some detections' bitmaps in the part of the image that holds them.

    Attributes:
        first: number of the first of the n detections.
        top: first row of the part.
        left: first column of the part.
        bitmaps: (n, rows, columns) bool.
    """

    first: int
    top: int
    left: int
    bitmaps: Tensor


def paste_masks(masks: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float = 0.5) -> Tensor:
    """Lay each mask over its box in the image.

    A pixel is taken where the mask, interpolated bilinearly at the pixel's centre, reaches the threshold;
    around the grid the mask is zero. The arithmetic is in the wider dtype of masks and boxes. Next to the
    result, memory for some 2**25 pixels is used, or for one image where that is more.

    Args:
        masks: (D, M, M) float in [0, 1], probabilities.
        boxes: (D, 4) xyxy, pixels of the image; without a size or outside of the image they give no pixel.
        size: (h, w) of the image, pixels.
        threshold: above 0, at most 1.

    Returns:
        (D, h, w) bool, on the masks' device.
    """
    bitmaps = torch.zeros((len(masks), *size), dtype=torch.bool, device=masks.device)
    for part in _paste_parts(masks, boxes, size, threshold):
        count, rows, columns = part.bitmaps.shape
        window = bitmaps[part.first : part.first + count, part.top : part.top + rows]
        window[:, :, part.left : part.left + columns] = part.bitmaps
    return bitmaps


def encode_masks(bitmaps: Tensor) -> list[RunLengthMask]:
    """Encode bitmaps of images.

    The runs are found where the bitmaps lie, so that only they travel from an accelerator.

    Args:
        bitmaps: (D, h, w) bool.

    Returns:
        D masks in COCO's compressed RLE.
    """
    _, height, width = bitmaps.shape
    return _encode(_Pasted(0, 0, 0, bitmaps), (height, width))


def paste_and_encode(
    masks: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float = 0.5
) -> list[RunLengthMask]:
    """Do what `encode_masks(paste_masks(...))` does, without ever holding all the bitmaps.

    Args:
        masks: (D, M, M) float in [0, 1], probabilities.
        boxes: (D, 4) xyxy, pixels of the image.
        size: (h, w) of the image, pixels.
        threshold: above 0, at most 1.

    Returns:
        D masks in COCO's compressed RLE.
    """
    parts = _paste_parts(masks, boxes, size, threshold)
    return [mask for part in parts for mask in _encode(part, size)]


def _paste_parts(masks: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float) -> Iterator[_Pasted]:
    """Paste all the detections, a few at a time, in the rectangle that holds these few."""
    assert threshold > 0, "zero is what lies outside of the boxes"
    dtype = torch.promote_types(masks.dtype, boxes.dtype)
    masks, starts, ends = masks.to(dtype), boxes[:, :2].to(dtype), boxes[:, 2:].to(dtype)
    boxes = torch.cat([starts, ends.maximum(starts)], dim=1)  # crossed ends: without a size
    windows = _windows(boxes, masks.shape[-1], size)
    step = _choose_step(masks.device, size)
    for first in range(0, len(masks), step):
        some = slice(first, first + step)
        left, top, right, bottom = _enclose(windows[some])
        xs = torch.arange(left, right, dtype=dtype, device=masks.device)
        ys = torch.arange(top, bottom, dtype=dtype, device=masks.device)
        yield _Pasted(first, top, left, _sample(masks[some], boxes[some], xs, ys) >= threshold)


def _choose_step(device: torch.device, size: tuple[int, int]) -> int:
    """How many masks to paste at a time: an accelerator wants large pieces, a CPU each in its own box."""
    return 1 if device.type == "cpu" else max(1, _PIXELS_AT_ONCE // (size[0] * size[1]))


def _windows(boxes: Tensor, grid_size: int, size: tuple[int, int]) -> list[list[int]]:
    """The pixels (left, top, right, bottom; the last two excluded) that each mask can reach: one host sync.

    Interpolated to the zeros around it, a mask reaches half a cell of its grid over its box.
    """
    margin = (boxes[:, 2:] - boxes[:, :2]) / (2 * grid_size) + 1
    outer = torch.cat([(boxes[:, :2] - margin).floor(), (boxes[:, 2:] + margin).ceil()], dim=1)
    limit = boxes.new_tensor([size[1], size[0]] * 2)
    windows: list[list[int]] = outer.clamp(min=0).minimum(limit).long().tolist()
    return windows


def _enclose(windows: Sequence[Sequence[int]]) -> tuple[int, int, int, int]:
    left, top, right, bottom = zip(*windows, strict=True)
    return min(left), min(top), max(right), max(bottom)


def _sample(masks: Tensor, boxes: Tensor, xs: Tensor, ys: Tensor) -> Tensor:
    """Interpolate (n, M, M) masks at columns xs and rows ys: (n, len(ys), len(xs)) in [0, 1]."""
    if not len(xs) or not len(ys):
        return masks.new_zeros((len(masks), len(ys), len(xs)))
    x = _normalize(xs, boxes[:, 0::2])[:, None, :].expand(-1, len(ys), -1)
    y = _normalize(ys, boxes[:, 1::2])[:, :, None].expand(-1, -1, len(xs))
    grid = torch.stack([x, y], dim=-1)
    values = F.grid_sample(masks[:, None], grid, "bilinear", padding_mode="zeros", align_corners=False)
    return values[:, 0]


def _normalize(pixels: Tensor, ends: Tensor) -> Tensor:
    """Centres of pixels (P,) in boxes from ends[:, 0] to ends[:, 1]: (n, P), -1 and 1 at the ends.

    From -2 and 2 on all is zero; so are boxes without a size.
    """
    start, end = ends[:, :1], ends[:, 1:]
    position = (pixels + 0.5 - start) / (end - start) * 2 - 1
    return position.nan_to_num(nan=-2.0).clamp(-2, 2)


def _encode(part: _Pasted, size: tuple[int, int]) -> list[RunLengthMask]:
    height, width = size
    # COCO counts down the columns. A zero above and below each makes every run begin and end in its column.
    columns = F.pad(part.bitmaps.transpose(1, 2), (1, 1))
    which, x, y = torch.nonzero(columns[..., 1:] != columns[..., :-1], as_tuple=True)
    borders = torch.stack([which, (x + part.left) * height + y + part.top]).cpu().numpy()
    limits = np.searchsorted(borders[0], np.arange(len(part.bitmaps) + 1))
    masks = []
    for start, stop in itertools.pairwise(limits):
        counts = _count(borders[1, start:stop], height * width)
        encoded = hotcoco.mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)
        masks.append({"size": [height, width], "counts": encoded["counts"].decode()})
    return masks


def _count(borders: npt.NDArray[np.int64], num_pixels: int) -> list[int]:
    """Lengths of the runs of zeros and ones in turn, from the (R,) places where runs begin and end.

    A run that ends at the foot of a column and goes on at the top of the next has left a place twice.
    """
    places, occurrences = np.unique(borders, return_counts=True)
    between = places[(occurrences == 1) & (places < num_pixels)]
    counts: list[int] = np.diff(between, prepend=0, append=num_pixels).tolist()
    return counts
