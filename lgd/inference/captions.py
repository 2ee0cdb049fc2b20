"""Captions on a picture: colours of the classes, a font, and places where plates do not cover one another."""

from __future__ import annotations

import colorsys
from collections.abc import Iterator, Sequence
from functools import cache

from PIL import ImageFont

Color = tuple[int, int, int]
Rectangle = tuple[int, int, int, int]  # x1, y1, x2, y2, the last pixels included
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

# The first found is taken; Pillow's own font, which every machine has, knows no letters beyond ASCII.
_FONT_FILES = ("NotoSansCJK-Regular.ttc", "DejaVuSans.ttf", "Arial Unicode.ttf", "arial.ttf")


@cache
def class_color(label: int) -> Color:
    """Hues spread by the golden ratio, so that neighbouring labels differ; brightness alternates too."""
    hue = (0.37 + label * 0.6180339887) % 1.0
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, (1.0, 0.8)[label // 3 % 2])
    return round(255 * red), round(255 * green), round(255 * blue)


def text_color(color: Color) -> Color:
    """Black on bright colours, white on dark ones (luma of ITU-R BT.601)."""
    red, green, blue = color
    return (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else (255, 255, 255)


@cache
def load_font(size: int) -> Font:
    """The font of this machine, `size` pixels high."""
    for name in _FONT_FILES:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return ImageFont.load_default(size)


def round_inside(box: Sequence[float], width: int, height: int) -> Rectangle:
    """Round and clip a box so that its outline can be seen, with ordered corners."""
    x1, x2 = (min(max(round(x), 0), width - 1) for x in (box[0], box[2]))
    y1, y2 = (min(max(round(y), 0), height - 1) for y in (box[1], box[3]))
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


def overlap(first: Rectangle, second: Rectangle) -> bool:
    """Whether two rectangles share a pixel."""
    return all(first[i] <= second[i + 2] and second[i] <= first[i + 2] for i in (0, 1))


def places_around(box: Rectangle, width: int, height: int) -> Iterator[tuple[int, int]]:
    """Yield upper left corners for a plate about a box: the best first.

    Above it, inside its top (of a low box behind what is below), below it, beside it; flush left, then right.

    Args:
        box: the box.
        width: of the plate, pixels.
        height: of the plate, pixels.
    """
    x1, y1, x2, y2 = box
    above, inside, below = y1 - height, y1, y2 + 1
    rows = (above, below, inside) if y2 + 1 - y1 < 3 * height else (above, inside, below)
    for y in rows:
        yield x1, y
        yield x2 - width + 1, y
    for y in (y1, y2 - height + 1):
        yield x2 + 1, y
        yield x1 - width, y
