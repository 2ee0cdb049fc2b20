"""A few canvases for all batches: what is compiled or captured for one shape serves many steps.

Legend: a canvas is (height, width), pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

from lgd.data.augmentations import LargeScaleJitter, QuarterTurn
from lgd.data.samples import Augmentation

Canvas = tuple[int, int]


def static_canvases(
    min_sizes: Sequence[int], max_size: int, size_divisibility: int = 32
) -> tuple[Canvas, ...]:
    """Find canvases that hold every batch of a recipe between them.

    For landscapes a small one, up to an aspect ratio of 4 : 3 at the largest short side, and one that holds
    them all; the same for portraits, squares among these; and one for batches in which both are mixed.

    Args:
        min_sizes: lengths of the short side that images are resized to, pixels.
        max_size: cap on the long side, pixels.
        size_divisibility: a canvas is a multiple of so many pixels.

    Returns:
        At least one; none twice.

    Raises:
        ValueError: images are not resized, so that nothing bounds them.
    """
    if 0 in min_sizes:
        raise ValueError(f"min_sizes is {tuple(min_sizes)}: images that keep their size fit no static canvas")
    short = min(max(min_sizes), max_size)
    common = min(round(short * 4 / 3), max_size)
    short, common, long = (_round_up(side, size_divisibility) for side in (short, common, max_size))
    canvases = [(short, common), (short, long), (common, short), (long, short), (long, long)]
    return tuple(dict.fromkeys(canvases))


def augmented_canvases(
    canvases: Sequence[Canvas], augmentations: Sequence[Augmentation], size_divisibility: int = 32
) -> list[Canvas]:
    """Find the largest canvases of augmented batches from those of batches as they are; none twice."""
    found = list(canvases)
    for each in augmentations:
        if isinstance(each, LargeScaleJitter) and each.size and each.probability:
            height, width = (_round_up(side, size_divisibility) for side in each.size)
            if each.probability == 1:
                found = [(height, width)]
            found = [(max(h, height), max(w, width)) for h, w in found]
        elif isinstance(each, QuarterTurn) and each.probability and each.turns != (2, 2):
            found = [(max(canvas), max(canvas)) for canvas in found]
    return list(dict.fromkeys(found))


def tight_canvas(sizes: Sequence[Sequence[int]], size_divisibility: int) -> Canvas:
    """Find the smallest canvas for images of these sizes (height, width), pixels."""
    height, width = (_round_up(max(sides), size_divisibility) for sides in zip(*sizes, strict=True))
    return height, width


def fit_canvas(canvas: Canvas, canvases: Sequence[Canvas]) -> Canvas:
    """Find the one of least area that holds `canvas`; `canvas` itself where none does."""
    fitting = [each for each in canvases if each[0] >= canvas[0] and each[1] >= canvas[1]]
    return min(fitting, key=lambda each: each[0] * each[1], default=canvas)


def _round_up(side: int, divisor: int) -> int:
    return -(-side // divisor) * divisor
