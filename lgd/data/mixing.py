"""Samples made of several: objects copied from another picture, and four pictures in one.

Legend: h x w the image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from lgd.data.augmentations import Range, scaled
from lgd.data.samples import Sample
from lgd.data.sight import (
    draw_masks,
    join_objects,
    move_objects,
    pixels_of,
    put_in_frame,
    select_objects,
    stay_in_sight,
)


@dataclass(frozen=True)
class CopyPaste:
    """Objects of another sample put over this one (2012.07177), together, at any place where they fit.

    By their masks, or where they have none with all that is in their boxes.

    Attributes:
        probability: share of the samples that it is done to.
        count: (least, most) objects, as far as the other sample has them.
        min_visible: see `lgd.data.sight.stay_in_sight`.
    """

    probability: float
    count: tuple[int, int]
    min_visible: float

    needs_others: ClassVar[bool] = True
    enlarges: ClassVar[bool] = False

    def __call__(self, sample: Sample, generator: np.random.Generator, draw: Callable[[], Sample]) -> Sample:
        """Paste the objects; see `lgd.data.samples.Augmentation`."""
        other = draw()
        number = int(generator.integers(self.count[0], self.count[1] + 1))
        chosen = np.zeros(len(other.labels), dtype=bool)
        chosen[generator.permutation(len(other.labels))[:number]] = True
        if not chosen.any():
            return sample
        other = select_objects(other, torch.from_numpy(chosen))
        corner = self._draw_corner(other, sample.size, generator)
        pasted = put_in_frame(
            other, size=other.size, frame=sample.size, corner=corner, min_visible=self.min_visible
        )
        covered = draw_masks(pasted)
        image = torch.where(torch.from_numpy(covered), pixels_of(pasted), pixels_of(sample))
        below = stay_in_sight(sample, covered=covered, min_visible=self.min_visible)
        return join_objects(image, [below, pasted])

    @staticmethod
    def _draw_corner(
        other: Sample, frame: tuple[int, int], generator: np.random.Generator
    ) -> tuple[int, int]:
        """Where the other picture's corner comes to lie, so that its objects lie in the frame or fill it."""
        left, top = other.boxes[:, :2].amin(dim=0).floor().int().tolist()
        right, bottom = other.boxes[:, 2:].amax(dim=0).ceil().int().tolist()
        corners = [
            int(generator.integers(min(-first, side - last), max(-first, side - last) + 1))
            for first, last, side in ((top, bottom, frame[0]), (left, right, frame[1]))
        ]
        return corners[0], corners[1]


@dataclass(frozen=True)
class Mosaic:
    """Four samples that meet in a point, this one at the top left, on an image of this one's size.

    Each lies with a corner in the point, and is cut off where its quarter ends.

    Attributes:
        probability: share of the samples that it is done to.
        scale: (least, most) factor on the size that each would have alone.
        center: (least, most) share of height and width at which they meet.
        min_visible: see `lgd.data.sight.stay_in_sight`.
    """

    probability: float
    scale: Range
    center: Range
    min_visible: float

    needs_others: ClassVar[bool] = True

    @property
    def enlarges(self) -> bool:
        """Whether pictures may come larger than alone."""
        return self.scale[1] > 1

    def __call__(self, sample: Sample, generator: np.random.Generator, draw: Callable[[], Sample]) -> Sample:
        """Put the four together; see `lgd.data.samples.Augmentation`."""
        height, width = sample.size
        # A quarter has at least one pixel each way.
        y, x = (
            min(max(1, round(generator.uniform(*self.center) * side)), max(1, side - 1))
            for side in (height, width)
        )
        image = torch.empty(3, height, width, dtype=torch.uint8)
        tiles: list[Sample] = []
        for is_lower, is_right in ((False, False), (False, True), (True, False), (True, True)):
            top, left = y * is_lower, x * is_right
            frame = height - y if is_lower else y, width - x if is_right else x
            each = draw() if tiles else sample
            size = scaled(each.size, generator.uniform(*self.scale))
            corner = 0 if is_lower else frame[0] - size[0], 0 if is_right else frame[1] - size[1]
            tile = put_in_frame(each, size=size, frame=frame, corner=corner, min_visible=self.min_visible)
            image[:, top : top + frame[0], left : left + frame[1]] = pixels_of(tile)
            tiles.append(move_objects(tile, (1, 1), (top, left)))
        return join_objects(image, tiles)
