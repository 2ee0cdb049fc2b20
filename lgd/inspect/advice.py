"""What to set for a data set, and why: short sides, anchors, detections of an image, classes.

Each rule is one function of what the set holds; the recipe that `lgd train --data` writes takes the same.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from lgd.data.index import Floats, Integers
from lgd.inspect.contents import Contents
from lgd.words import counted

Size = Literal["small", "base"]
Value = bool | int | float | str | list[Any]

_OCTAVES = tuple(2 ** (third / 3) for third in range(3))
_COCO_SIDES = (32, 64, 128, 256, 512)
_RATIOS: tuple[tuple[float, ...], ...] = (
    (0.5, 1.0, 2.0),
    (1.0, 2.0, 3.0),
    (0.33, 0.5, 1.0),
    (0.33, 0.5, 1.0, 2.0, 3.0),
    (0.2, 0.5, 1.0, 2.0, 5.0),
)
_SCALES = (1.0, 0.5, 0.25)
_CLEARLY_BETTER = 0.02
"""Share of the boxes by which an unusual set of anchors must cover more than a usual one."""
_MAX_BOXES = 20_000
_PHOTOGRAPH = 4_000_000
"""Pixels from which on decoding is most of what reading a picture costs."""


@dataclass(frozen=True)
class Sides:
    """Sizes of the pictures that the model sees.

    Attributes:
        train: short sides in training, pixels.
        test: short side in testing, pixels.
        longest: cap on the long side, pixels.
        why: a line.
    """

    train: tuple[int, ...]
    test: int
    longest: int
    why: str


@dataclass(frozen=True)
class Anchors:
    """Shapes of the anchors.

    Attributes:
        scale: factor on COCO's sides, 32 to 512 pixels.
        ratios: heights over widths.
        why: a line.
    """

    scale: float
    ratios: tuple[float, ...]
    why: str

    def sizes(self, *, dense: bool) -> list[list[float]]:
        """Sides a level, pixels: three a level for a one-stage detector, else one."""
        steps = _OCTAVES if dense else (1.0,)
        return [[round(side * self.scale * step, 2) for step in steps] for side in _COCO_SIDES]


@dataclass(frozen=True)
class Advice:
    """One setting: its key, its value, and why, in a line."""

    key: str
    value: Value
    why: str


@dataclass(frozen=True)
class _Range:
    """Limits of the short side, pixels, and how wide the smallest tenth of the boxes should be there."""

    least: int
    most: int
    wanted: int


_RANGES = {"small": _Range(256, 384, 12), "base": _Range(480, 800, 24)}


def choose_sides(contents: Contents, size: Size) -> Sides:
    """Choose the sizes of pictures: as large as the small objects need, and no larger than makes sense.

    Args:
        contents: of the training set; at least one object.
        size: of the model: what it can afford.
    """
    limits = _RANGES[size]
    picture = float(np.median(contents.short_sides))
    small_box = float(np.quantile(contents.box_sizes / contents.short_sides[contents.image_of], 0.1))
    needed = limits.wanted / max(small_box, 1e-6)
    # Twice the picture's own size shows nothing more.
    side = min(max(needed, limits.least), limits.most, max(limits.least, 2 * picture))
    test = max(32, round(side / 32) * 32)
    spread = (3, 2, 1, 0) if size == "base" else (2, 1, 0)
    elongation = float(np.quantile(_long_sides(contents) / contents.short_sides, 0.9))
    why = (
        f"a tenth of the boxes is smaller than {small_box * test:.0f} x {small_box * test:.0f} pixels then; "
        f"the pictures' own short side is {picture:.0f}"
    )
    return Sides(
        train=tuple(test - 16 * step if size == "small" else test - 32 * step for step in spread),
        test=test,
        longest=round(test * min(max(elongation * 1.05, 1.5), 2.5) / 32) * 32,
        why=why,
    )


def scaled_boxes(contents: Contents, sides: Sides) -> Floats:
    """(N, 2) widths and heights of the boxes in pixels of a picture resized to `sides.test`."""
    factor = np.minimum(sides.test / contents.short_sides, sides.longest / _long_sides(contents))
    scaled: Floats = contents.sides * factor[contents.image_of, None]
    return scaled


def _long_sides(contents: Contents) -> Integers:
    return np.maximum(contents.heights, contents.widths)


def choose_anchors(contents: Contents, sides: Sides) -> Anchors:
    """Choose the anchors that most boxes find one like them among.

    The usual ones (COCO's, then smaller ones) are left only for what covers clearly more boxes.
    """
    boxes = scaled_boxes(contents, sides)
    boxes = boxes[:: max(1, len(boxes) // _MAX_BOXES)]
    coverages = {
        (scale, ratios): _coverage(boxes, scale, ratios)
        for ratios, scale in itertools.product(_RATIOS, _SCALES)
    }
    best = usual = (1.0, _RATIOS[0])
    for choice, coverage in coverages.items():
        dearer = _CLEARLY_BETTER * (1 + max(0, len(choice[1]) - len(best[1])))
        if coverage > coverages[best] + dearer:
            best = choice
    scale, ratios = best
    why = f"{coverages[best]:.0%} of the boxes have an anchor of their shape (overlap of 0.5)"
    if best != usual:
        why += f", of COCO's anchors {coverages[usual]:.0%}"
    return Anchors(scale, ratios, why)


def _coverage(boxes: Floats, scale: float, ratios: tuple[float, ...]) -> float:
    """Share of the boxes, (N, 2), that overlap by at least 0.5 with an anchor about the same centre."""
    sizes = np.array([side * scale * step for side in _COCO_SIDES for step in _OCTAVES])
    roots = np.sqrt(np.array(ratios))
    widths, heights = np.outer(sizes, 1 / roots).ravel(), np.outer(sizes, roots).ravel()
    common = np.minimum(boxes[:, :1], widths) * np.minimum(boxes[:, 1:], heights)
    union = boxes.prod(axis=1, keepdims=True) + widths * heights - common
    return float((common / union >= 0.5).any(axis=1).mean())


def choose_detections(contents: Contents) -> Advice:
    """How many detections of an image are kept: COCO's 100, or half more than the fullest image has."""
    most = int(contents.per_image.max(initial=0))
    key = "TEST.DETECTIONS_PER_IMAGE"
    if most <= 100:
        return Advice(key, 100, f"the fullest image has {counted(most, 'object')}")
    return Advice(
        key, -(-3 * most // 200) * 100, f"the fullest image has {most} objects, and half as many more"
    )


def choose_cache(contents: Contents, sides: Sides) -> list[Advice]:
    """Where to keep decoded pictures, if they are so large that decoding them takes longer than all else."""
    pixels = contents.heights.astype(np.float64) * contents.widths
    if float(np.median(pixels)) < _PHOTOGRAPH:
        return []
    halvings = np.floor(np.log2(contents.short_sides / sides.test)).clip(0, 3)  # as large JPEGs are decoded
    reduced = pixels / 4**halvings
    size = max(0.1, 3 * reduced.sum() / 2**30)
    why = (
        f"half of the pictures have {np.median(pixels) / 1e6:.0f} megapixels or more: kept as decoded, about "
        f"{size:.1f} GiB, they are read several times as fast from the second epoch on"
    )
    return [Advice("DATALOADER.CACHE_DIR", "FOLDER", why)]


def advise(contents: Contents, size: Size = "base") -> list[Advice]:
    """What to set to train on these contents, which hold at least one object."""
    sides = choose_sides(contents, size)
    anchors = choose_anchors(contents, sides)
    return [
        Advice("NUM_CLASSES", len(contents.classes), "as many as the data has; 0 takes the number from it"),
        Advice("INPUT.MIN_SIZE_TRAIN", list(sides.train), sides.why),
        Advice("INPUT.MIN_SIZE_TEST", sides.test, "the largest of these"),
        Advice("INPUT.MAX_SIZE_TRAIN", sides.longest, "nine of ten pictures keep that short side"),
        Advice("MODEL.ANCHOR_GENERATOR.SIZES", anchors.sizes(dense=True), anchors.why),
        Advice("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", [list(anchors.ratios)], "height over width"),
        choose_detections(contents),
        *choose_cache(contents, sides),
    ]
