"""YOLO's label files: a line an object, its class's number and a box or a polygon in parts of the picture.

Read here rather than by hotcoco (`COCO.from_yolo`, 1.3.0): it reads one folder of boxes with a YAML inside of
it, not lists, polygons, or labels that lie elsewhere, and does not say which line is wrong.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from lgd.data.annotations import ParsedImage, columns_of_images
from lgd.data.cache import Columns, cached_columns
from lgd.data.errors import DataError
from lgd.data.images import read_size
from lgd.data.index import AnnotationIndex
from lgd.data.limits import MAX_XML_BYTES, check_size, is_printable, name_some, plain, read_text, shown
from lgd.data.presence import names_in
from lgd.data.remarks import Remark, to_metadata
from lgd.data.yolo_layouts import YoloSplit, find_labels, find_pictures
from lgd.notices import follow
from lgd.words import counted

logger = logging.getLogger(__name__)

_NUM_THREADS = 16
"""Reading headers waits for the disk or the network, not for the processor."""

_SLACK = 1e-4
"""How far beyond 0..1 rounding takes a number."""

_NO_LABELS = {"classes.txt", "notes.txt", "train.txt", "val.txt", "valid.txt", "test.txt"}
"""Texts that lie beside label files and are none."""


def load_yolo(split: YoloSplit, *, name: str) -> AnnotationIndex:
    """Open a split of a YOLO set.

    Images are numbered from 1, in the order of their folders or lists; category ids are the numbers of the
    label files. A picture without a label file, or with an empty one, has no objects.

    Args:
        split: where it lies.
        name: what messages call the set.

    Raises:
        DataError: pictures are absent or unreadable, no picture has a label file, or a line is not what the
            format says; names file and line.
    """
    pictures = find_pictures(split)
    labels = find_labels(pictures)
    if not any(labels):
        raise DataError(
            f"{name}: none of the {counted(len(pictures), 'picture')} has a label file, neither in a "
            f"folder labels in place of images nor beside it; the first is {plain(pictures[0])}"
        )
    unused = _unused(split, labels)
    image_dir = Path(os.path.commonpath({path.rpartition("/")[0] for path in pictures}))
    file_names = [path[len(str(image_dir)) :].lstrip("/") for path in pictures]
    unprintable = next((file_name for file_name in file_names if not is_printable(file_name)), None)
    if unprintable is not None:
        raise DataError(f"{name}: the picture {plain(unprintable)} has a name of more than one line")

    @cache
    def sizes() -> list[tuple[int, int]]:
        with ThreadPoolExecutor(_NUM_THREADS) as threads:
            found = threads.map(lambda picture: read_size(Path(picture)), pictures)
            return list(follow(found, f"{name}: sizes of the pictures", len(pictures)))

    def describe() -> str:
        lines = [
            f"{file_name}\t{size}\t{label is None}"
            for file_name, size, label in zip(file_names, sizes(), labels, strict=True)
        ]
        return "\n".join((split.name, *lines))

    cache_path = cached_columns(
        split.path,
        lambda content_hash: _parse(split, file_names, sizes(), labels, unused, content_hash),
        parts=[*(path for path in labels if path is not None), *unused],
        max_part_bytes=MAX_XML_BYTES,
        pictures=pictures,
        describe=describe,
        split=split.name,
    )
    index = AnnotationIndex(
        cache_path, name=name, json_path=split.path, image_dir=image_dir, layout=split.layout
    )
    for warning in index.warnings:
        logger.warning("%s", warning)
    return index


def _unused(split: YoloSplit, labels: Sequence[str | None]) -> list[str]:
    """The label files that have no picture, of folders; a list may leave out what it likes."""
    if not all(place.is_dir() for place in split.places):
        return []
    used = {path for path in labels if path is not None}
    folders = {path.rpartition("/")[0] for path in used}
    present = {
        f"{folder}/{name}"
        for folder in folders
        for name in names_in(Path(folder))
        if name.endswith(".txt") and name not in _NO_LABELS
    }
    return sorted(present - used)


def _parse(
    split: YoloSplit,
    file_names: Sequence[str],
    sizes: Sequence[tuple[int, int]],
    labels: Sequence[str | None],
    unused: Sequence[str],
    content_hash: str,
) -> Columns:
    numbers = list(split.class_names)
    places = {number: label for label, number in enumerate(numbers)}
    images = []
    files = zip(file_names, sizes, labels, strict=True)
    for file_name, size, path in follow(files, f"{split.spec}: labels", len(labels)):
        if wrong := check_size(*size):
            raise DataError(f"{split.path}: the size of {plain(file_name)}, {size[1]} x {size[0]}, {wrong}")
        images.append(_parse_image(file_name, size, path, places, split))
    columns, remarks = columns_of_images(images, split.path)
    absent = [name for name, path in zip(file_names, labels, strict=True) if path is None]
    if absent:
        text = f"{counted(len(absent), 'picture')} without a label file, taken as without objects"
        named = name_some(absent, plain, at_most=3)
        remarks.append(Remark("pictures_without_labels", len(absent), f"{text}: {named}"))
    if unused:
        named = name_some(unused, lambda path: plain(path.rpartition("/")[2]), at_most=3)
        text = f"{counted(len(unused), 'label file')} without a picture, left out: {named}"
        remarks.append(Remark("labels_without_pictures", len(unused), text))
    if split.num_keypoints:
        count = len(columns["labels"])
        text = f"the keypoints of {counted(count, 'object')} are not read; the boxes are"
        remarks.append(Remark("keypoints", count, text))
    metadata = {
        "kind": "coco",
        "content_hash": content_hash,
        "class_names": list(split.class_names.values()),
        "category_ids": numbers,
        "has_annotations": True,
        "remarks": [to_metadata(remarks)],
    }
    return columns, metadata


def _parse_image(
    file_name: str, size: tuple[int, int], path: str | None, places: Mapping[int, int], split: YoloSplit
) -> ParsedImage:
    boxes, labels, polygons = [], [], []
    lines = (
        read_text(Path(path), MAX_XML_BYTES).removeprefix("\ufeff").splitlines() if path is not None else []
    )
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            label, box, polygon = _parse_line(line, size, places, split.num_keypoints)
        except ValueError as error:
            raise DataError(f"{path}, line {number}: {error}") from error
        boxes.append(box)
        labels.append(label)
        polygons.append([polygon] if polygon else [])
    none = [False] * len(boxes)
    return ParsedImage(file_name, size[0], size[1], boxes, labels, none, none, polygons)


def _parse_line(
    line: str, size: tuple[int, int], places: Mapping[int, int], num_keypoints: int
) -> tuple[int, tuple[float, float, float, float], list[float]]:
    """The label, the box as x1, y1, x2, y2 and the polygon, if any, of an object, in pixels."""
    words = line.split()
    numbers = [_number(word) for word in words]
    height, width = size
    number, values = numbers[0], numbers[1:]
    if number not in places:
        known = (
            f"0 to {len(places) - 1}" if list(places) == list(range(len(places))) else name_some(list(places))
        )
        raise ValueError(f"the class is {shown(words[0])}; the set has {known}")
    is_polygon = not num_keypoints and len(values) >= 6 and len(values) % 2 == 0
    if not is_polygon and len(values) != 4 + num_keypoints:
        expected = f"{5 + num_keypoints}" if num_keypoints else "5 (a box), or 7, 9, ... (a polygon)"
        raise ValueError(f"it has {counted(len(words), 'number')}, not {expected}")
    values = values if is_polygon else values[:4]
    wrong = next((k for k, value in enumerate(values) if not -_SLACK <= value <= 1 + _SLACK), None)
    if wrong is not None:
        raise ValueError(f"{shown(words[wrong + 1])} is not in 0..1, the width or height of the picture")
    if not is_polygon:
        x, y, w, h = values
        edges = ((x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height)
        return places[int(number)], edges, []
    xs, ys = [x * width for x in values[::2]], [y * height for y in values[1::2]]
    polygon = [value for point in zip(xs, ys, strict=True) for value in point]
    return places[int(number)], (min(xs), min(ys), max(xs), max(ys)), polygon


def _number(word: str) -> float:
    try:
        if "_" not in word:  # which Python takes for a separator of digits
            return float(word)
    except ValueError:
        pass
    raise ValueError(f"{shown(word)} is not a number")
