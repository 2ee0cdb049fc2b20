"""Draw: pictures with labels beside detections, errors marked, and cut-outs about suspects.

Legend: H x W the picture.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from lgd.analyse.findings import Analysis
from lgd.analyse.images import is_found
from lgd.analyse.matches import BACKGROUND, BOTH, CLASS, DUPLICATE, LOCATION, RIGHT
from lgd.analyse.suspects import Suspect
from lgd.data.images import read_image
from lgd.data.index import AnnotationIndex
from lgd.inference.captions import (
    Color,
    Rectangle,
    load_font,
    overlap,
    places_around,
    text_color,
)

MISSED: Color = (214, 40, 40)
CROWD: Color = (120, 120, 120)
COLORS: dict[int, tuple[str, Color]] = {
    RIGHT: ("right", (30, 160, 60)),
    BACKGROUND: ("missed, or nothing labelled there", MISSED),
    LOCATION: ("badly placed", (240, 140, 20)),
    CLASS: ("wrong class", (150, 60, 200)),
    DUPLICATE: ("found twice", (30, 120, 220)),
    BOTH: ("wrong class, badly placed", (190, 40, 140)),
}
"""What kinds of detections are called in the legend, and their colours."""

_PANEL_SIDE = 560
_MOST_ENLARGED = 4.0
_CROP_SIDE = 260
_QUALITY = 82
_LABEL_COLOR: Color = (20, 110, 230)
_FOUND_COLOR: Color = (214, 40, 40)


@dataclass(frozen=True)
class Mark:
    """A box to draw, with a line of so many pixels."""

    box: Sequence[float]
    color: Color
    caption: str = ""
    width: int = 2


@dataclass(frozen=True)
class _Part:
    """A part of a picture of `size` (width, height), from `corner` on, enlarged by `scale`."""

    size: tuple[int, int]
    corner: tuple[int, int]
    scale: float

    def place(self, box: Sequence[float]) -> Rectangle:
        """Where a box stands in the part, clipped to the whole picture: what leaves the part is cut there."""
        x1, y1, x2, y2 = (
            round((min(max(value, 0), self.size[k % 2] - 1) - self.corner[k % 2]) * self.scale)
            for k, value in enumerate(box)
        )
        return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


def draw_labels(index: AnnotationIndex, image: int, analysis: Analysis) -> list[Mark]:
    """What is labelled in an image: what was missed stands out."""
    matches = analysis.matches
    found = is_found(analysis)
    rows = matches.by_image.get(image, (np.array([], int), np.array([], int)))[1]
    marks = []
    for row in rows.tolist():
        name = _name(index, int(matches.object_labels[row]))
        box = matches.object_boxes[row].tolist()
        if matches.crowd[row]:
            marks.append(Mark(box, CROWD, f"{name} crowd".strip()))
        elif found[row]:
            marks.append(Mark(box, COLORS[RIGHT][1]))
        else:
            marks.append(Mark(box, MISSED, name, width=3))
    return marks


def draw_found(index: AnnotationIndex, image: int, analysis: Analysis) -> list[Mark]:
    """What was found in an image at the thresholds, in the colours of `COLORS`; the surest first."""
    matches = analysis.matches
    rows = matches.by_image.get(image, (np.array([], int), np.array([], int)))[0]
    rows = rows[analysis.kept[rows]]
    marks = []
    for row in rows[np.argsort(-matches.scores[rows], kind="stable")].tolist():
        kind = int(matches.kinds[row])
        box, color = matches.boxes[row].tolist(), COLORS[kind][1]
        if kind == RIGHT:
            marks.append(Mark(box, color))
        else:
            caption = f"{_name(index, int(matches.labels[row]))} {matches.scores[row]:.2f}".strip()
            marks.append(Mark(box, color, caption, width=3))
    return marks


def _name(index: AnnotationIndex, label: int) -> str:
    """What a class is called on pictures; where there is but one, nothing."""
    return index.class_names[label] if len(index.class_names) > 1 else ""


def draw_panels(index: AnnotationIndex, image: int, panels: Sequence[Sequence[Mark]]) -> list[str]:
    """Draw an image once for each panel; returns data URIs.

    Raises:
        ImageError: the picture cannot be read.
    """
    picture = _read(index, image)
    scale = _choose_scale(picture.size)
    size = tuple(max(1, round(side * scale)) for side in picture.size)
    resized = picture.resize((size[0], size[1]), Image.Resampling.LANCZOS)
    part = _Part(picture.size, (0, 0), scale)
    return [_as_uri(_draw(resized.copy(), marks, part)) for marks in panels]


def draw_suspect(index: AnnotationIndex, suspect: Suspect, marks: Sequence[Mark] = ()) -> str:
    """Cut out what is about a suspect, twice its size; returns a data URI.

    Args:
        index: the data set.
        suspect: what is drawn.
        marks: the labels about it, thin.

    Raises:
        ImageError: the picture cannot be read.
    """
    picture = _read(index, suspect.image)
    x1, y1, x2, y2 = suspect.box
    side = max(x2 - x1, y2 - y1, 24.0) * 1.1
    x, y = (x1 + x2) / 2, (y1 + y2) / 2
    left, top = max(0, round(x - side)), max(0, round(y - side))
    right, bottom = min(picture.width, round(x + side)), min(picture.height, round(y + side))
    right, bottom = max(right, left + 1), max(bottom, top + 1)
    scale = _CROP_SIDE / max(right - left, bottom - top)
    size = max(1, round((right - left) * scale)), max(1, round((bottom - top) * scale))
    crop = picture.crop((left, top, right, bottom)).resize(size, Image.Resampling.BICUBIC)
    color = _FOUND_COLOR if suspect.label is None else _LABEL_COLOR
    name = index.class_names[suspect.found if suspect.label is None else suspect.label]  # type: ignore[index]
    caption = name if suspect.label is not None else f"{name} {suspect.score:.2f}"
    part = _Part(picture.size, (left, top), scale)
    return _as_uri(_draw(crop, [Mark(suspect.box, color, caption, width=3), *marks], part))


def labels_about(index: AnnotationIndex, suspect: Suspect, analysis: Analysis) -> list[Mark]:
    """The other labels of a suspect's picture, thin."""
    marks = draw_labels(index, suspect.image, analysis)
    others = [mark for mark in marks if tuple(mark.box) != suspect.box]
    return [Mark(mark.box, _LABEL_COLOR) for mark in others]


def _read(index: AnnotationIndex, image: int) -> Image.Image:
    return Image.fromarray(read_image(index.path(image)).permute(1, 2, 0).contiguous().numpy())


def _choose_scale(size: tuple[int, int]) -> float:
    """Large pictures are reduced, small ones enlarged, so that captions can be read."""
    return min(_MOST_ENLARGED, _PANEL_SIDE / max(size))


def _draw(picture: Image.Image, marks: Sequence[Mark], part: _Part) -> Image.Image:
    """Draw marks, given in pixels of the whole picture, into a part of it."""
    draw = ImageDraw.Draw(picture)
    font = load_font(13)
    rectangles = [part.place(mark.box) for mark in marks]
    for mark, rectangle in reversed(list(zip(marks, rectangles, strict=True))):
        draw.rectangle(rectangle, outline=mark.color, width=mark.width)
    plates: list[Rectangle] = []
    for mark, rectangle in zip(marks, rectangles, strict=True):
        if not mark.caption:
            continue
        left, top, right, bottom = map(round, draw.textbbox((0, 0), mark.caption, font))
        width, height = right - left + 6, bottom - top + 5
        for x, y in places_around(rectangle, width, height):
            x = max(0, min(x, picture.width - width))
            plate = (x, y, x + width - 1, y + height - 1)
            is_inside = y >= 0 and plate[3] < picture.height and plate[2] < picture.width
            if is_inside and not any(overlap(plate, other) for other in plates):
                plates.append(plate)
                draw.rectangle(plate, fill=mark.color)
                draw.text((x + 3 - left, y + 2 - top), mark.caption, text_color(mark.color), font)
                break
    return picture


def _as_uri(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
