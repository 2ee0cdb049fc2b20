"""What the annotation formats share: checks of boxes, and the way from parsed images to columns.

Legend: I images, A annotations, G annotations of an image.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lgd.data.columns import Array
from lgd.data.errors import DataError
from lgd.data.index import Flags, Floats, Integers
from lgd.data.limits import MAX_COORDINATE, check_size, name_some
from lgd.data.remarks import Remark
from lgd.data.segmentations import segmentation_columns
from lgd.words import counted

MIN_SIDE = 1e-5
"""Boxes with a side of at most so many pixels are no objects (detectron2's threshold)."""


@dataclass(frozen=True)
class ParsedImage:
    """One image of a format whose annotations are boxes, perhaps with polygons for masks.

    Attributes:
        file_name: path below the image folder.
        height: pixels, of the picture shown upright.
        width: pixels, of the picture shown upright.
        boxes: G boxes, each x1, y1, x2, y2 in pixels, finite.
        labels: G labels.
        crowd: G flags: regions that are neither trained on nor counted.
        difficult: G flags: objects that are trained on but not counted.
        polygons: G masks, each a list of polygons of x and y in turn, pixels, empty where there is no mask;
            or nothing at all where no object has one.
    """

    file_name: str
    height: int
    width: int
    boxes: Sequence[Sequence[float]]
    labels: Sequence[int]
    crowd: Sequence[bool]
    difficult: Sequence[bool]
    polygons: Sequence[Sequence[Sequence[float]]] = ()


def columns_of_images(
    images: Sequence[ParsedImage], path: Path, *, may_reach_outside: bool = False
) -> tuple[dict[str, Array], list[Remark]]:
    """Number images and annotations from 1 in their order, and lay them out as columns.

    Args:
        images: I of them.
        path: the annotation file, for messages.
        may_reach_outside: the format's boxes reach outside their images as a rule: nothing is said of it.

    Returns:
        The columns that `AnnotationIndex` reads, and a remark on each kind of box that was dropped.

    Raises:
        DataError: an image is of a size that cannot be.
    """
    for image in images:
        if wrong := check_size(image.height, image.width):
            raise DataError(f"{path}: the size of {image.file_name}, {image.width} x {image.height}, {wrong}")
    counts = [len(image.boxes) for image in images]
    place = np.repeat(np.arange(len(images)), counts)
    boxes = np.array(_chain(image.boxes for image in images), dtype=np.float64).reshape(-1, 4)
    widths, heights = (np.array([getattr(image, side) for image in images]) for side in ("width", "height"))
    labels = np.array(_chain(image.labels for image in images), dtype=np.int64)

    def describe(which: Flags) -> str:
        return "in " + name_some(sorted({images[p].file_name for p in place[which].tolist()}))

    keep, remarks = usable_boxes(
        boxes, widths[place], heights[place], describe, may_reach_outside=may_reach_outside
    )
    remarks += repeated_boxes(place, labels, boxes, keep, describe)
    sides = boxes[keep, 2:] - boxes[keep, :2]
    xywh = np.concatenate([boxes[keep, :2], sides], axis=1)
    ids = np.flatnonzero(keep) + 1
    polygons = _chain(image.polygons or [()] * len(image.boxes) for image in images)
    records = [{"segmentation": polygons[number - 1]} for number in ids.tolist()]
    masks, _ = segmentation_columns(records, heights[place[keep]], widths[place[keep]], ids.tolist())
    annotations = annotation_columns(
        len(images),
        place[keep],
        xywh=xywh,
        labels=labels[keep],
        ids=ids,
        areas=sides[:, 0] * sides[:, 1],
        crowd=np.array(_chain(image.crowd for image in images), dtype=np.bool_)[keep],
        difficult=np.array(_chain(image.difficult for image in images), dtype=np.bool_)[keep],
        usable=np.ones(len(ids), dtype=np.bool_),
    )
    names = [image.file_name for image in images]
    columns = image_columns(np.arange(1, len(images) + 1), names, heights, widths)
    return columns | annotations | masks, remarks


def image_columns(
    ids: Integers,
    file_names: Sequence[str],
    heights: Integers,
    widths: Integers,
    written_ids: Sequence[int | str | None] = (),
) -> dict[str, Array]:
    """Lay out I images, ascending by id; of `written_ids`, I or none, see `lgd.data.ids.Ids`."""
    encoded = [name.encode() for name in file_names]
    written = [b"" if value is None else json.dumps(value).encode() for value in written_ids]
    written = written or [b""] * len(ids)
    return {
        "written_ids": np.frombuffer(b"".join(written), dtype=np.uint8),
        "written_id_offsets": offsets([len(text) for text in written]),
        "part_offsets": np.array([0, len(ids)]),
        "image_ids": ids,
        "heights": heights,
        "widths": widths,
        "file_names": np.frombuffer(b"".join(encoded), dtype=np.uint8),
        "file_name_offsets": offsets([len(name) for name in encoded]),
    }


def annotation_columns(
    num_images: int,
    image: Integers,
    *,
    xywh: Floats,
    labels: Integers,
    ids: Integers,
    areas: Floats,
    crowd: Flags,
    difficult: Flags,
    usable: Flags,
) -> dict[str, Array]:
    """Lay out A annotations, ascending by `image`, (A,) the places of their images in [0, num_images)."""
    return {
        "annotation_offsets": offsets(np.bincount(image, minlength=num_images)),
        "counts": np.bincount(image[usable & ~crowd], minlength=num_images).astype(np.int64),
        "xywh": xywh,
        "labels": labels,
        "annotation_ids": ids,
        "areas": areas,
        "crowd": crowd,
        "difficult": difficult,
        "usable": usable,
    }


def usable_boxes(
    boxes: Floats,
    widths: Integers,
    heights: Integers,
    describe: Callable[[Flags], str],
    *,
    may_reach_outside: bool = False,
) -> tuple[Flags, list[Remark]]:
    """Tell which boxes have a size and meet their image.

    Args:
        boxes: (A, 4) xyxy, pixels.
        widths: (A,) of their images, pixels.
        heights: (A,) of their images, pixels.
        describe: says which annotations these (A,) flags stand for.
        may_reach_outside: say nothing of boxes that are clipped.

    Returns:
        (A,) flags, and a remark on each kind of box that is not as it should be.
    """
    limits = np.stack([widths, heights, widths, heights], axis=1)
    clipped = np.clip(boxes, 0, limits)
    no_size = np.any(boxes[:, 2:] - boxes[:, :2] <= MIN_SIDE, axis=1)
    outside = np.any(clipped[:, 2:] - clipped[:, :2] <= MIN_SIDE, axis=1) & ~no_size
    # A pixel of slack: rounding alone puts some of COCO's own boxes a fraction of a pixel outside.
    reaching = np.any(np.abs(boxes - clipped) > 1, axis=1) & ~no_size & ~outside & (not may_reach_outside)
    kinds = (
        (no_size, "boxes_without_size", "dropped", "without a positive size"),
        (outside, "boxes_outside", "dropped", "wholly outside the image"),
        (reaching, "boxes_clipped", "clipped", "reaching more than a pixel outside the image"),
    )
    remarks = [
        Remark(
            kind,
            int(which.sum()),
            f"{done} {counted(which.sum(), 'box', 'boxes')} {text} ({describe(which)})",
        )
        for which, kind, done, text in kinds
        if which.any()
    ]
    return ~(no_size | outside), remarks


def repeated_boxes(
    image: Integers, labels: Integers, boxes: Floats, usable: Flags, describe: Callable[[Flags], str]
) -> list[Remark]:
    """Find boxes that are there before, of the same class in the same image.

    Args:
        image: (A,) whose the boxes are.
        labels: (A,) their classes.
        boxes: (A, 4) in any form.
        usable: (A,) which of them are objects.
        describe: says which annotations (A,) flags stand for.

    Returns:
        A remark if there are some; they stay, as nobody can know that they are not two objects.
    """
    rows = np.column_stack([image, labels, boxes])[usable]
    # Sorted by a sum that equal rows share; a hundred times as fast as by all columns.
    weights = np.random.default_rng(0).random((rows.shape[1],))
    sums = np.zeros(len(rows))
    for k, weight in enumerate(weights.tolist()):  # a product of matrices would not round all rows alike
        sums += rows[:, k] * weight
    order = np.argsort(sums, kind="stable")
    is_again = np.zeros(len(rows), dtype=np.bool_)
    is_again[order[1:]] = (rows[order[1:]] == rows[order[:-1]]).all(axis=1)
    if not is_again.any():
        return []
    again = np.zeros(len(usable), dtype=np.bool_)
    again[usable] = is_again
    text = (
        f"{counted(is_again.sum(), 'box is', 'boxes are')} there twice, of the same class in the same "
        f"image ({describe(again)}): all are trained on and counted; remove the second ones if each pair is "
        "one object"
    )
    return [Remark("boxes_repeated", int(is_again.sum()), text)]


def is_box(value: Any) -> bool:
    """Whether this is a list of four numbers that make sense as pixels."""
    return (
        isinstance(value, list)
        and len(value) == 4
        and all(type(x) in (int, float) and -MAX_COORDINATE <= x <= MAX_COORDINATE for x in value)
    )


def offsets(lengths: Iterable[int] | Integers) -> Integers:
    """Where each of the runs of these lengths begins, and where the last ends."""
    return np.concatenate([[0], np.cumsum(np.asarray(lengths, dtype=np.int64))]).astype(np.int64)


def _chain(lists: Iterable[Sequence[Any]]) -> list[Any]:
    return list(itertools.chain.from_iterable(lists))
