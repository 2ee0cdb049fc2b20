"""What may be done to training samples beyond resizing, cropping, mirroring: light, turns, scale, cut-outs.

All chance comes from the generator that is handed in, which the place in the epoch seeds; torchvision's
kernels do the pixels. What takes other samples is in `lgd.data.mixing`.

Legend: h x w the image.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

from lgd.data.outlines import close_outlines
from lgd.data.samples import Sample
from lgd.data.sight import FILL, outlines_of, pixels_of, put_in_frame, stay_in_sight
from lgd.data.transforms import ImageFormat

Range = tuple[float, float]
Draw = Callable[[], Sample]


@dataclass(frozen=True)
class ColorJitter:
    """Other light.

    Attributes:
        probability: share of the samples that it is done to.
        brightness: (least, most) factor; 1 leaves it.
        contrast: likewise.
        saturation: likewise.
        hue: (least, most) turn of the colour wheel, within half of one; 0 leaves it.
        image_format: order of the channels of the images.
    """

    probability: float
    brightness: Range
    contrast: Range
    saturation: Range
    hue: Range
    image_format: ImageFormat

    needs_others: ClassVar[bool] = False
    enlarges: ClassVar[bool] = False

    def __call__(self, sample: Sample, generator: np.random.Generator, draw: Draw) -> Sample:
        """Change the colours; see `lgd.data.samples.Augmentation`."""
        steps: list[tuple[Callable[[Tensor, float], Tensor], Range, float]] = [
            (functional.adjust_brightness, self.brightness, 1.0),
            (functional.adjust_contrast, self.contrast, 1.0),
            (functional.adjust_saturation, self.saturation, 1.0),
            (functional.adjust_hue, self.hue, 0.0),
        ]
        drawn = [generator.uniform(*bounds) for _, bounds, _ in steps]
        turns = [k for k in generator.permutation(len(steps)).tolist() if drawn[k] != steps[k][2]]
        if not turns:
            return sample
        # In float32, plane by plane, the kernels take half as long as on bytes, and round once.
        image = self._in_rgb(pixels_of(sample)).contiguous().float().div_(255)
        for k in turns:
            image = steps[k][0](image, drawn[k])
        return replace(sample, image=self._in_rgb(image.mul(255).round_().byte()))

    def _in_rgb(self, image: Tensor) -> Tensor:
        """The image with the order of its channels turned round if it is BGR."""
        return image.flip(0) if self.image_format == "BGR" else image


@dataclass(frozen=True)
class VerticalFlip:
    """Upside down."""

    probability: float

    needs_others: ClassVar[bool] = False
    enlarges: ClassVar[bool] = False

    def __call__(self, sample: Sample, generator: np.random.Generator, draw: Draw) -> Sample:
        """Flip the sample; see `lgd.data.samples.Augmentation`."""
        height = sample.size[0]
        x1, y1, x2, y2 = sample.boxes.unbind(1)
        outlines = outlines_of(sample)
        left, top, right, bottom = outlines.edges.unbind(1)
        return replace(
            sample,
            image=functional.vertical_flip(pixels_of(sample)),
            boxes=torch.stack([x1, height - y2, x2, height - y1], dim=1),
            outlines=replace(
                outlines, edges=torch.stack([left, height - top, right, height - bottom], dim=1)
            ),
        )


@dataclass(frozen=True)
class QuarterTurn:
    """Turned counter-clockwise.

    Attributes:
        probability: share of the samples that it is done to.
        turns: (least, most) number of quarter turns, 1 to 3.
    """

    probability: float
    turns: tuple[int, int]

    needs_others: ClassVar[bool] = False
    enlarges: ClassVar[bool] = False

    def __call__(self, sample: Sample, generator: np.random.Generator, draw: Draw) -> Sample:
        """Turn the sample; see `lgd.data.samples.Augmentation`."""
        turns = int(generator.integers(self.turns[0], self.turns[1] + 1))
        boxes, width = sample.boxes, sample.size[1]
        outlines = close_outlines(outlines_of(sample))
        edges, height = outlines.edges, sample.size[0]
        for _ in range(turns):
            x1, y1, x2, y2 = boxes.unbind(1)
            boxes = torch.stack([y1, width - x2, y2, width - x1], dim=1)
            x1, y1, x2, y2 = edges.unbind(1)
            edges = torch.stack([y1, width - x1, y2, width - x2], dim=1)
            height, width = width, height
        image = torch.rot90(pixels_of(sample), turns, dims=(1, 2))  # torchvision's `rotate` resamples
        return replace(sample, image=image, boxes=boxes, outlines=replace(outlines, edges=edges))


@dataclass(frozen=True)
class LargeScaleJitter:
    """Resized by a large range of factors, then cut or filled up to a fixed size (2012.07177, section 3).

    Attributes:
        probability: share of the samples that it is done to.
        scale: (least, most) factor on what just fits into `size`, or on the sample's own size.
        size: (height, width) that come out, pixels; None for the sample's.
        min_visible: see `lgd.data.sight.stay_in_sight`.
    """

    probability: float
    scale: Range
    size: tuple[int, int] | None
    min_visible: float

    needs_others: ClassVar[bool] = False

    @property
    def enlarges(self) -> bool:
        """Whether pictures may come larger than alone."""
        return self.size is not None or self.scale[1] > 1

    def __call__(self, sample: Sample, generator: np.random.Generator, draw: Draw) -> Sample:
        """Resize and cut the sample; see `lgd.data.samples.Augmentation`."""
        frame = self.size or sample.size
        scale = generator.uniform(*self.scale) * min(frame[0] / sample.size[0], frame[1] / sample.size[1])
        size = scaled(sample.size, scale)
        rooms = [frame[0] - size[0], frame[1] - size[1]]
        top, left = (int(generator.integers(min(0, room), max(0, room) + 1)) for room in rooms)
        return put_in_frame(sample, size=size, frame=frame, corner=(top, left), min_visible=self.min_visible)


@dataclass(frozen=True)
class CutOut:
    """Grey rectangles painted over (random erasing, 1708.04896).

    Attributes:
        probability: share of the samples that it is done to.
        count: (least, most) rectangles.
        area: (least, most) share of the image that each covers; where that is too long for it, less.
        ratio: (least, most) height over width.
        min_visible: see `lgd.data.sight.stay_in_sight`.
    """

    probability: float
    count: tuple[int, int]
    area: Range
    ratio: Range
    min_visible: float

    needs_others: ClassVar[bool] = False
    enlarges: ClassVar[bool] = False

    def __call__(self, sample: Sample, generator: np.random.Generator, draw: Draw) -> Sample:
        """Paint the rectangles; see `lgd.data.samples.Augmentation`."""
        height, width = sample.size
        image, covered = pixels_of(sample), np.zeros((height, width), dtype=bool)
        for _ in range(int(generator.integers(self.count[0], self.count[1] + 1))):
            area = generator.uniform(*self.area) * height * width
            ratio = math.exp(generator.uniform(*np.log(self.ratio)))
            rows = min(height, max(1, round(math.sqrt(area * ratio))))
            columns = min(width, max(1, round(math.sqrt(area / ratio))))
            top, left = generator.integers(height - rows + 1), generator.integers(width - columns + 1)
            covered[top : top + rows, left : left + columns] = True
            fill = image.new_full((3, 1, 1), FILL)
            image = functional.erase(image, int(top), int(left), rows, columns, fill)
        return stay_in_sight(replace(sample, image=image), covered=covered, min_visible=self.min_visible)


def scaled(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """A size times a factor, whole pixels; at least 2, since torch 2.14 cannot resize to a single pixel."""
    return max(2, round(size[0] * scale)), max(2, round(size[1] * scale))
