"""What was found in a picture, drawn into it at its own size.

Legend: H x W the picture, D detections.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from lgd.evaluation.masks import paste_masks
from lgd.inference.captions import (
    Font,
    Rectangle,
    class_color,
    load_font,
    overlap,
    places_around,
    round_inside,
    text_color,
)
from lgd.structures import Detections

_MASK_OPACITY = 0.35
_MAX_CAPTION_SHARE = 0.2
_LEAST_TEXT = 11
"""Pixels; smaller letters cannot be read."""


def draw_result(pixels: Tensor, found: Detections, class_names: Sequence[str]) -> Image.Image:
    """Draw boxes with captions, and masks where there are, in the colours of the classes.

    Lines and letters follow the size of the picture and of what was found. Captions cover neither one another
    nor other small objects; one that finds no such place about its box is shortened to its score, and then
    left out: its box still has the colour of its class.

    Args:
        pixels: (3, H, W) uint8, RGB.
        found: D detections, best first, boxes in pixels of the picture.
        class_names: the class names by label.
    """
    canvas = pixels.permute(1, 2, 0).contiguous().numpy().copy()
    height, width = canvas.shape[:2]
    boxes, labels = found.boxes.tolist(), found.labels.tolist()
    rectangles = [round_inside(box, width, height) for box in boxes]
    text_size, line_width = _choose_sizes(rectangles, width, height)
    if found.masks is not None:
        for i in reversed(range(len(labels))):  # the best on top
            _tint(canvas, found.masks[i], found.boxes[i], labels[i], line_width)
    picture = Image.fromarray(canvas)
    draw = ImageDraw.Draw(picture)
    for rectangle, label in reversed(list(zip(rectangles, labels, strict=True))):
        _outline(draw, rectangle, label, line_width)
    captions = [
        (class_names[label], f"{score:.2f}")
        for label, score in zip(labels, found.scores.tolist(), strict=True)
    ]
    _write_captions(draw, picture.size, rectangles, labels, captions, text_size)
    return picture


def _choose_sizes(rectangles: Sequence[Rectangle], width: int, height: int) -> tuple[int, int]:
    """Height of the letters and width of the lines, pixels.

    A fixed share of the picture, so that they are seen when it is shown as a whole; but in proportion to
    small objects, which would disappear beneath.
    """
    side = min(width, height)
    shorts = sorted(min(x2 - x1, y2 - y1) + 1 for x1, y1, x2, y2 in rectangles)
    typical = shorts[len(shorts) // 2] if shorts else side
    text = max(_LEAST_TEXT, min(round(side / 44), round(typical / 4)))
    line = max(1, min(round(side / 300), round(typical / 16)))
    return text, line if side < 160 else max(2, line)


def _outline(draw: ImageDraw.ImageDraw, rectangle: Rectangle, label: int, line_width: int) -> None:
    draw.rectangle(rectangle, outline=class_color(label), width=line_width)


def _tint(canvas: np.ndarray, mask: Tensor, box: Tensor, label: int, line_width: int) -> None:
    """Lay one (M, M) mask over the picture: translucent, with a line of full colour inside its border.

    Only the part of the picture about the box is looked at.
    """
    height, width = canvas.shape[:2]
    x1, y1, x2, y2 = box.tolist()
    # A mask reaches half a cell of its grid over its box.
    margin = max(x2 - x1, y2 - y1) / (2 * len(mask)) + 2
    left, top = max(0, int(x1 - margin)), max(0, int(y1 - margin))
    right, bottom = min(width, int(x2 + margin) + 1), min(height, int(y2 + margin) + 1)
    moved = box - box.new_tensor([left, top, left, top])
    bitmap = paste_masks(mask[None], moved[None], (bottom - top, right - left))
    reach = max(1, line_width // 2)
    outside = F.max_pool2d(1.0 - bitmap.float(), 2 * reach + 1, stride=1, padding=reach)[0] > 0
    inside, line = bitmap[0].numpy(), (bitmap[0] & outside).numpy()
    color = np.array(class_color(label))
    part = canvas[top:bottom, left:right]
    part[inside] = ((1 - _MASK_OPACITY) * part[inside] + _MASK_OPACITY * color).round()
    part[line] = color


def _write_captions(
    draw: ImageDraw.ImageDraw,
    size: tuple[int, int],
    rectangles: Sequence[Rectangle],
    labels: Sequence[int],
    captions: Sequence[tuple[str, str]],
    text_size: int,
) -> None:
    """Write captions, name and score each, in order, on plates that do not overlap, while there is room."""
    font = load_font(text_size)
    taken = _Taken(size, rectangles)
    for rectangle, label, (name, score) in zip(rectangles, labels, captions, strict=True):
        for text in (f"{name} {score}", score):
            plate, corner = _place(draw, text, font, rectangle, taken)
            if plate is not None:
                taken.add(plate)
                color = class_color(label)
                draw.rectangle(plate, fill=color)
                draw.text(corner, text, text_color(color), font)
                break


def _place(
    draw: ImageDraw.ImageDraw, text: str, font: Font, rectangle: Rectangle, taken: _Taken
) -> tuple[Rectangle | None, tuple[float, float]]:
    """A free plate for a text, None where there is no room; and where the text begins."""
    left, _, right, _ = draw.textbbox((0, 0), text, font)
    _, top, _, bottom = draw.textbbox((0, 0), "Ag", font)  # the same height for every caption
    pad = max(2, round((bottom - top) / 6))
    width, height = round(right - left) + 2 * pad, round(bottom - top) + 2 * pad
    for x, y in places_around(rectangle, width, height):
        x = max(0, min(x, taken.width - width))
        plate = (x, y, x + width - 1, y + height - 1)
        if taken.has_room(plate, rectangle):
            return plate, (x + pad - left, y + pad - top)
    return None, (0.0, 0.0)


def _center(box: Rectangle) -> tuple[int, int]:
    return (box[0] + box[2]) // 2, (box[1] + box[3]) // 2


def _hides(plate: Rectangle, box: Rectangle) -> bool:
    """Whether a plate covers the middle of a box, and most of it."""
    x, y = _center(box)
    is_small = _area(box) < 4 * _area(plate)
    return is_small and plate[0] <= x <= plate[2] and plate[1] <= y <= plate[3]


def _area(rectangle: Rectangle) -> int:
    x1, y1, x2, y2 = rectangle
    return (x2 - x1 + 1) * (y2 - y1 + 1)


class _Taken:
    """The plates that are there already, by cells of a grid: thousands are soon looked through."""

    _CELL = 128

    def __init__(self, size: tuple[int, int], boxes: Sequence[Rectangle]) -> None:
        self.width, self.height = size
        self._free_area = _MAX_CAPTION_SHARE * self.width * self.height
        self._plates: dict[tuple[int, int], list[Rectangle]] = {}
        self._boxes: dict[tuple[int, int], list[Rectangle]] = {}
        for box in boxes:
            x, y = _center(box)
            self._boxes.setdefault((x // self._CELL, y // self._CELL), []).append(box)

    def has_room(self, plate: Rectangle, own: Rectangle) -> bool:
        """Whether a plate for the box `own` lies inside the picture, apart from others, and hides no box."""
        x1, y1, x2, y2 = plate
        if x1 < 0 or y1 < 0 or x2 >= self.width or y2 >= self.height:
            return False
        if _area(plate) > self._free_area:
            return False
        cells = self._cells(plate)
        if any(overlap(plate, other) for cell in cells for other in self._plates.get(cell, [])):
            return False
        return not any(
            _hides(plate, box) for cell in cells for box in self._boxes.get(cell, []) if box != own
        )

    def add(self, plate: Rectangle) -> None:
        """Take the place of a plate."""
        self._free_area -= _area(plate)
        for cell in self._cells(plate):
            self._plates.setdefault(cell, []).append(plate)

    def _cells(self, plate: Rectangle) -> list[tuple[int, int]]:
        x1, y1, x2, y2 = (side // self._CELL for side in plate)
        return [(x, y) for x in range(x1, x2 + 1) for y in range(y1, y2 + 1)]
