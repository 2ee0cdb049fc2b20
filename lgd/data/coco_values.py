"""The numbers of COCO's annotations: boxes, crowds and areas, as they stand or as what is said of them.

Legend: A annotations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lgd.data.errors import DataError
from lgd.data.index import Flags, Floats, Integers
from lgd.data.limits import MAX_COORDINATE, as_flag, name_some
from lgd.data.records import refuse, values_of
from lgd.data.remarks import Remark
from lgd.data.segmentations import box_of_mask, segmentation_columns
from lgd.words import counted

_MANY_CROWDS = 0.05
"""The share of crowds beyond which they may be objects; of COCO's annotations 0.012 are."""

_CORNERS = 10
"""Boxes that it takes to tell corners from sizes."""


def read_boxes(
    records: Sequence[Mapping[str, Any]], heights: Integers, widths: Integers, ids: Integers, path: Path
) -> tuple[Floats, list[Remark]]:
    """Read the boxes; of annotations without one, those around their masks.

    Args:
        records: A annotations.
        heights: (A,) of their images, pixels.
        widths: (A,) of their images, pixels.
        ids: (A,).
        path: the file, for messages.

    Returns:
        (A, 4) x, y, width, height, pixels, all finite, and the remarks.

    Raises:
        DataError: a box is not four numbers, is not finite or beyond all pictures, or there is neither a box
            nor a mask; or the boxes are no pixels, but fractions of their images.
    """
    lacking = [place for place, record in enumerate(records) if record.get("bbox") in (None, [])]
    masks, _ = segmentation_columns(
        [records[place] for place in lacking], heights[lacking], widths[lacking], ids[lacking].tolist()
    )
    found = {place: box_of_mask(masks, row, int(heights[place])) for row, place in enumerate(lacking)}
    of_masks = {place: box for place, box in found.items() if box is not None}
    given = _given(records, of_masks, path)
    values = [of_masks.get(place, value) for place, value in enumerate(given)] if of_masks else given
    wrong = np.array([not _is_four_numbers(value) for value in values], dtype=bool)
    refuse(wrong, ids, "bbox of annotation", "is not four numbers", path)
    boxes = _as_floats([x for value in values for x in value]).reshape(-1, 4)
    refuse(~np.all(np.isfinite(boxes), axis=1), ids, "bbox of annotation", "is NaN or infinite", path)
    too_large = np.any(np.abs(boxes) > MAX_COORDINATE, axis=1)
    refuse(too_large, ids, "bbox of annotation", f"is beyond {MAX_COORDINATE} pixels", path)
    _refuse_fractions(boxes, path)
    if not of_masks:
        return boxes, []
    named = name_some(ids[list(of_masks)].tolist())
    text = (
        f"{counted(len(of_masks), 'annotation has', 'annotations have')} no bbox: it is taken around "
        f"the mask (annotations {named})"
    )
    return boxes, [Remark("boxes_from_masks", len(of_masks), text)]


def _given(records: Sequence[Mapping[str, Any]], of_masks: Mapping[int, Any], path: Path) -> list[Any]:
    """The boxes of the file; whatever where they are taken from masks."""
    if of_masks:
        records = [{"bbox": None} if place in of_masks else record for place, record in enumerate(records)]
    return values_of(records, "bbox", "annotation", path)


def _is_four_numbers(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(type(x) in (int, float) for x in value)


def _as_floats(values: Sequence[float | None]) -> Floats:
    """Numbers of any size; NaN for what is absent, infinity for what is beyond all floats."""
    try:
        return np.array(values, dtype=np.float64)
    except OverflowError:
        return np.array([np.inf if type(x) is int and abs(x) >= 2**1023 else x for x in values], np.float64)


def _refuse_fractions(boxes: Floats, path: Path) -> None:
    """Raise where all boxes lie in 0..1, and not at its ends alone, where objects of a pixel are."""
    if len(boxes) and boxes.min() >= -0.001 and boxes.max() <= 1.001 and np.any(boxes % 1 != 0):
        raise DataError(
            f'{path}: each "bbox" of the {counted(len(boxes), "annotation")} lies within 0..1: they are '
            "fractions of the image, and should be x, y, width and height in pixels; multiply them by its "
            "width and height"
        )


def read_crowds(
    records: Sequence[Mapping[str, Any]], ids: Integers, path: Path
) -> tuple[Flags, list[Remark]]:
    """Read which annotations are crowds: (A,), and a remark where it is written as text.

    Raises:
        DataError: an "iscrowd" says neither yes nor no.
    """
    values = [record.get("iscrowd") for record in records]
    flags = [as_flag(0 if value is None else value) for value in values]
    wrong = np.array([flag is None for flag in flags], dtype=bool)
    refuse(wrong, ids, "iscrowd of annotation", "is neither 0 nor 1", path)
    texts = [place for place, value in enumerate(values) if isinstance(value, str)]
    crowd = np.array(flags, dtype=np.bool_)
    if not texts:
        return crowd, []
    named = name_some(ids[texts].tolist())
    text = (
        f"{counted(len(texts), 'annotation has', 'annotations have')} iscrowd as text, read as what it "
        f"says (annotations {named})"
    )
    return crowd, [Remark("iscrowd_text", len(texts), text)]


def read_areas(
    records: Sequence[Mapping[str, Any]], xywh: Floats, pixels: Integers, ids: Integers, path: Path
) -> tuple[Floats, list[Remark]]:
    """Read the areas: those of the boxes where there is none, or none that can be, as of a clockwise polygon.

    Args:
        records: A annotations.
        xywh: (A, 4) their boxes.
        pixels: (A,) of their images.
        ids: (A,).
        path: the file, for messages.

    Returns:
        (A,) square pixels, and a remark on those that cannot be.

    Raises:
        DataError: one is no number.
    """
    values = [record.get("area") for record in records]
    values = [None if value == [] else value for value in values]
    wrong = np.array([value is not None and type(value) not in (int, float) for value in values], dtype=bool)
    refuse(wrong, ids, "area of annotation", "is not a number", path)
    areas = _as_floats(values)
    of_boxes = xywh[:, 2] * xywh[:, 3]
    is_absent = np.array([value is None for value in values], dtype=bool)
    largest = 2 * np.maximum(pixels, of_boxes)
    is_wrong = ~is_absent & ~((areas >= 0) & (areas <= largest)) | (areas == 0) & (of_boxes > 0)
    areas = np.where(is_absent | is_wrong, of_boxes, areas)
    if not is_wrong.any():
        return areas, []
    text = (
        f"{counted(is_wrong.sum(), 'area is', 'areas are')} negative, zero, not finite or far beyond the "
        f"image; taken from the boxes (annotations {name_some(ids[is_wrong].tolist())})"
    )
    return areas, [Remark("areas_from_boxes", int(is_wrong.sum()), text)]


def say_of_boxes(xywh: Floats, heights: Integers, widths: Integers) -> list[Remark]:
    """Say where the boxes look like corners: as such all are in their images, as x, y, w, h many are not."""
    x, y, last_x, last_y = xywh.T
    are_corners = (x >= 0) & (y >= 0) & (last_x > x) & (last_y > y)
    are_corners &= (last_x <= widths + 1) & (last_y <= heights + 1)
    reaching = (x + last_x > widths + 1) | (y + last_y > heights + 1)
    if len(xywh) < _CORNERS or not are_corners.all() or reaching.mean() < 0.2:
        return []
    text = (
        f"{reaching.sum()} of {len(xywh)} boxes reach outside their image, and none would if bbox were x1, "
        "y1, x2, y2: it has to be x, y, width, height"
    )
    return [Remark("boxes_look_like_corners", int(reaching.sum()), text)]


def say_of_crowds(crowd: Flags) -> list[Remark]:
    """Say how many annotations are crowds, where they are so many that they may be objects."""
    number = int(crowd.sum())
    if number <= _MANY_CROWDS * len(crowd):
        return []
    text = (
        f"{number} of {len(crowd)} objects are marked iscrowd and are not trained on; some tools, such as "
        "supervision, mark objects of several parts so: DATASETS.CROWDS object takes them as objects"
    )
    return [Remark("crowds", number, text)]
