"""Large pictures with small objects: looked at in tiles that overlap, and what is found put together.

Legend: T tiles, N boxes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from lgd.data.transforms import Window
from lgd.structures import Detections

SAME = 0.5
"""Overlap (IoU) above which two boxes of a class are the same object."""

COVERED = 0.5
"""Share of a cut box that another of its class covers, from which on it is a part of that one."""

_EDGE = 0.01
"""A box that comes so near to a tile's border, as a share of its side, is cut by it."""


@dataclass(frozen=True)
class Tiling:
    """How a picture is cut up.

    Attributes:
        size: side of the square tiles, pixels of the picture, at least 1.
        overlap: share of a tile that its neighbour sees too, at least; in [0, 0.9].
    """

    size: int
    overlap: float = 0.2

    def __post_init__(self) -> None:
        if not is_number(self.size, whole=True) or self.size < 32:
            raise ValueError(f"the side of tiles is {self.size!r}; give at least 32 pixels")
        if not is_number(self.overlap) or not 0 <= self.overlap <= 0.9:
            raise ValueError(f"the overlap of tiles is {self.overlap!r}; give 0 to 0.9")

    @classmethod
    def of(cls, size: int | None, overlap: float | None) -> Tiling | None:
        """What is asked for: None without a size; without an overlap a fifth.

        Raises:
            ValueError: an overlap without a size, or a number outside of its range.
        """
        if size is not None:
            return cls(size) if overlap is None else cls(size, overlap)
        if overlap is not None:
            raise ValueError(f"the overlap {overlap!r} is of tiles: it goes with their size")
        return None

    def windows(self, height: int, width: int) -> list[Window]:
        """The whole picture, for large objects, and behind it the tiles, if it is larger than one."""
        whole = Window(0, 0, height, width)
        if max(height, width) <= self.size:
            return [whole]
        rows, columns = min(self.size, height), min(self.size, width)
        tops, lefts = self._starts(height), self._starts(width)
        return [whole, *(Window(top, left, rows, columns) for top in tops for left in lefts)]

    def _starts(self, side: int) -> list[int]:
        """Where tiles begin, spread evenly, so that all are of one size and overlap enough."""
        rest = side - self.size
        if rest <= 0:
            return [0]
        steps = math.ceil(rest / max(1.0, self.size * (1 - self.overlap)))
        return [round(rest * step / steps) for step in range(steps + 1)]


def merge_tiles(
    parts: Sequence[Detections], windows: Sequence[Window], height: int, width: int
) -> Detections:
    """Put together what was found in the windows of one picture.

    Boxes of a class that overlap are one object, the best stays. Boxes that a tile's border cuts come after
    all others, and go where one of these covers half of them; a cut box that no other explains stays.

    Args:
        parts: what was found in each of T windows, boxes in pixels of the window.
        windows: of the picture.
        height: of the picture, pixels.
        width: of the picture, pixels.

    Returns:
        Detections of the picture, best first.
    """
    moved = [
        part.boxes + part.boxes.new_tensor([w.left, w.top] * 2)
        for part, w in zip(parts, windows, strict=True)
    ]
    cut = torch.cat([_cut(boxes, w, height, width) for boxes, w in zip(moved, windows, strict=True)])
    boxes, scores = torch.cat(moved), torch.cat([part.scores for part in parts])
    labels = torch.cat([part.labels for part in parts])
    masks = [part.masks for part in parts if part.masks is not None]
    kept = _suppress(boxes, scores, labels, cut)
    kept = kept[scores[kept].argsort(descending=True, stable=True)]
    joined = torch.cat(masks)[kept] if len(masks) == len(parts) else None
    return Detections(boxes[kept], scores[kept], labels[kept], joined)


def _cut(boxes: Tensor, window: Window, height: int, width: int) -> Tensor:
    """(N,) bool, which boxes end at a border of the window that is none of the picture."""
    top, left, rows, columns = window
    x, y = _EDGE * columns, _EDGE * rows
    return (
        ((boxes[:, 0] < left + x) & (left > 0))
        | ((boxes[:, 1] < top + y) & (top > 0))
        | ((boxes[:, 2] > left + columns - x) & (left + columns < width))
        | ((boxes[:, 3] > top + rows - y) & (top + rows < height))
    )


def _suppress(boxes: Tensor, scores: Tensor, labels: Tensor, cut: Tensor) -> Tensor:
    """Indices of the boxes kept; memory for a row of overlaps at a time, of thousands of boxes."""
    order = scores.argsort(descending=True, stable=True)
    order = order[cut[order].long().argsort(stable=True)]
    boxes, labels, cut = boxes[order], labels[order], cut[order]
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
    alive = torch.ones(len(order), dtype=torch.bool)
    for i in range(len(order)):
        if not alive[i]:
            continue
        sides = torch.minimum(boxes[i, 2:], boxes[i + 1 :, 2:]) - torch.maximum(
            boxes[i, :2], boxes[i + 1 :, :2]
        )
        shared = sides.clamp(min=0).prod(dim=1)
        is_same = shared > SAME * (areas[i] + areas[i + 1 :] - shared)
        is_part = cut[i + 1 :] & (shared > COVERED * areas[i + 1 :])
        alive[i + 1 :] &= ~((is_same | is_part) & (labels[i + 1 :] == labels[i]))
    return order[alive]


def is_number(value: Any, *, whole: bool = False) -> bool:
    """Whether it is a number of Python's or NumPy's, and neither a text nor a flag."""
    return isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
