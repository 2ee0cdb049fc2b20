"""Resizing and flipping of images, boxes and outlines; pure functions, chance comes in as a generator.

Legend: H x W the image, G boxes, T edges of outlines.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional

from lgd.data.annotations import MIN_SIDE

ImageFormat = Literal["BGR", "RGB"]
_REDUCTIONS = (1, 2, 4, 8)
Floats = NDArray[np.float64]
Booleans = NDArray[np.bool_]


@dataclass(frozen=True)
class Resize:
    """How large images become, detectron2's ResizeShortestEdge.

    Attributes:
        min_sizes: lengths of the short side, pixels; 0 leaves images as they are.
        max_size: the long side's cap, pixels.
        sampling: take one of `min_sizes`, or any length from its first to its second.
    """

    min_sizes: tuple[int, ...]
    max_size: int
    sampling: Literal["choice", "range"] = "choice"

    def __post_init__(self) -> None:
        if not self.min_sizes or min(self.min_sizes) < 0:
            raise ValueError(f"min_sizes is {self.min_sizes}; give at least one length of at least 0")
        if self.sampling == "range" and (len(self.min_sizes) != 2 or self.min_sizes[0] > self.min_sizes[1]):
            raise ValueError(f"min_sizes is {self.min_sizes}; sampling 'range' needs (least, greatest)")

    def draw(self, generator: np.random.Generator) -> int:
        """Draw a length of the short side, pixels."""
        if self.sampling == "range":
            return int(generator.integers(self.min_sizes[0], self.min_sizes[1] + 1))
        return self.min_sizes[int(generator.integers(len(self.min_sizes)))]


class Window(NamedTuple):
    """A part of an image, pixels.

    Attributes:
        top: its first row.
        left: its first column.
        height: rows, at least 1.
        width: columns, at least 1.
    """

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class Crop:
    """How large a part of an image is taken, detectron2's RandomCrop.

    Attributes:
        kind: what `size` means: "relative", fractions of the image's height and width; "relative_range", the
            least such fractions, the most being 1; "absolute", height and width in pixels; "absolute_range",
            the least and the most pixels of either side. No part is larger than its image.
        size: see `kind`.
    """

    kind: Literal["relative", "relative_range", "absolute", "absolute_range"]
    size: tuple[float, float]

    def __post_init__(self) -> None:
        if min(self.size) <= 0:
            raise ValueError(f"the size of crops is {self.size}; give two numbers above 0")
        if self.kind.startswith("relative") and max(self.size) > 1:
            raise ValueError(f"the size of crops is {self.size}; {self.kind} needs fractions of at most 1")
        if self.kind.startswith("absolute") and not all(float(side).is_integer() for side in self.size):
            raise ValueError(f"the size of crops is {self.size}; {self.kind} needs whole pixels")
        if self.kind == "absolute_range" and self.size[0] > self.size[1]:
            raise ValueError(f"the size of crops is {self.size}; {self.kind} needs (least, most)")

    def draw(self, generator: np.random.Generator, height: int, width: int) -> Window:
        """Draw a part of an image of this size, each place equally likely."""
        rows, columns = (max(1, side) for side in self._draw_size(generator, height, width))
        top, left = generator.integers(height - rows + 1), generator.integers(width - columns + 1)
        return Window(int(top), int(left), rows, columns)

    def _draw_size(self, generator: np.random.Generator, height: int, width: int) -> tuple[int, int]:
        first, second = self.size
        if self.kind == "absolute":
            return min(int(first), height), min(int(second), width)
        if self.kind == "absolute_range":
            sides = (
                generator.integers(min(side, int(first)), min(side, int(second)) + 1)
                for side in (height, width)
            )
            return int(next(sides)), int(next(sides))
        if self.kind == "relative_range":
            first, second = np.array(self.size) + generator.random(2) * (1 - np.array(self.size))
        return int(height * first + 0.5), int(width * second + 0.5)


@dataclass(frozen=True)
class View:
    """From a decoded picture to what the model sees of it.

    Attributes:
        window: the part that is shown.
        size: (height, width) that it is resized to, pixels.
        flip: whether it is mirrored left to right.
        image_format: order of the channels.
    """

    window: Window
    size: tuple[int, int]
    flip: bool
    image_format: ImageFormat

    @property
    def enlarges(self) -> bool:
        """Whether the view has at least as many pixels as what it shows."""
        return self.size[0] * self.size[1] >= self.window.height * self.window.width

    @property
    def reduction(self) -> int:
        """By how much, each way, the picture can be smaller and still larger than the view: 1, 2, 4 or 8."""
        rows, columns = self.window.height / self.size[0], self.window.width / self.size[1]
        return max(factor for factor in _REDUCTIONS if factor == 1 or factor < min(rows, columns))

    def __call__(self, image: Tensor, reduction: int = 1) -> Tensor:
        """Return the view (3, height, width) of an image (3, H, W), both uint8.

        Args:
            image: whose pixels may stand for `reduction` pixels of the picture each way.
            reduction: at most `self.reduction`.
        """
        if any(number % reduction for number in self.window):
            return self._mirror(_resize_between_pixels(image, self.window, reduction, self.size))
        image = crop_image(image, Window(*(number // reduction for number in self.window)))
        if self.enlarges:
            return resize_image(self._mirror(image), self.size)  # there are fewer pixels to mirror before
        return self._mirror(resize_image(image, self.size))

    def boxes(self, boxes: Floats) -> tuple[Floats, Booleans]:
        """Let boxes follow the image.

        In numpy, since on few numbers torch's operations take several times as long, as much as 0.4 ms an
        image, while caches are full of pixels.

        Args:
            boxes: (G, 4) xyxy, pixels of the image.

        Returns:
            (G, 4) in pixels of the view, clipped to it, and (G,) bool, which of them still have an extent.
        """
        top, left, rows, columns = self.window
        height, width = self.size
        y, x = height / rows, width / columns
        boxes = (boxes - np.array([left, top, left, top])) * np.array([x, y, x, y])
        if self.flip:
            boxes[:, 0::2] = width - boxes[:, 2::-2]
        boxes = boxes.clip(0, np.array([width, height, width, height]))
        return boxes, np.all(boxes[:, 2:] - boxes[:, :2] > MIN_SIDE, axis=1)

    def edges(self, edges: Tensor) -> Tensor:
        """Let (T, 4) edges x1 y1 x2 y2 follow the image, without clipping."""
        top, left, rows, columns = self.window
        height, width = self.size
        y, x = height / rows, width / columns
        edges = (edges - edges.new_tensor([left, top, left, top])) * edges.new_tensor([x, y, x, y])
        if not self.flip:
            return edges
        x1, y1, x2, y2 = edges.unbind(1)
        return torch.stack([width - x1, y1, width - x2, y2], dim=1)

    def _mirror(self, image: Tensor) -> Tensor:
        if self.image_format == "RGB":
            return image.flip(2) if self.flip else image
        # On what decoders return, channels last in memory, these mirror whole rows or whole pixels; flip(0)
        # alone is five times as slow.
        return image.flip(0, 2) if self.flip else image.flip(0, 2).flip(2)


def resized_size(height: int, width: int, min_size: int, max_size: int) -> tuple[int, int]:
    """Size of an image whose short side becomes `min_size` unless the long side would exceed `max_size`.

    Args:
        height: pixels.
        width: pixels.
        min_size: length of the short side, pixels; 0 for no change.
        max_size: the long side's cap, pixels.

    Returns:
        (height, width), each at least 1, rounded as detectron2 does.
    """
    if min_size == 0:
        return height, width
    scale = min_size / min(height, width)
    new_height, new_width = (min_size, scale * width) if height < width else (scale * height, min_size)
    longest = max(new_height, new_width)
    if longest > max_size:
        new_height, new_width = new_height * (max_size / longest), new_width * (max_size / longest)
    return max(1, int(new_height + 0.5)), max(1, int(new_width + 0.5))


def crop_image(image: Tensor, window: Window) -> Tensor:
    """Take a part of a (3, H, W) image."""
    top, left, height, width = window
    return image[:, top : top + height, left : left + width]


def resize_image(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize with bilinear interpolation, smoothed where it shrinks (Pillow's, to within 1 of 255).

    Args:
        image: (3, H, W) uint8.
        size: (height, width), pixels.

    Returns:
        (3, height, width) uint8.
    """
    # 2.4 times as fast as torch.nn.functional.interpolate on what decoders return, channels last in memory.
    resized: Tensor = functional.resize(image, list(size), antialias=True)
    return resized


def _resize_between_pixels(image: Tensor, window: Window, reduction: int, size: tuple[int, int]) -> Tensor:
    """Resize a window of a picture whose borders lie within pixels of the reduced image."""
    top, left, height, width = (number / reduction for number in window)
    box = (left, top, left + width, top + height)
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    resized = picture.resize((size[1], size[0]), Image.Resampling.BILINEAR, box=box)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)
