"""From a COCO-style JSON to checked columns.

What makes training wrong is a `DataError` in one line; what everyone drops is dropped and counted in a
warning.

Legend: I images, A annotations, K categories.
"""

from __future__ import annotations

import gc
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lgd.data.annotations import annotation_columns, image_columns, usable_boxes
from lgd.data.columns import Array
from lgd.data.errors import DataError
from lgd.data.index import Flags, Floats, Integers
from lgd.data.limits import (
    MAX_COORDINATE,
    check_size,
    is_name,
    is_printable,
    leads_outside,
    name_some,
    parse_json,
    read_text,
    shown,
)
from lgd.data.remarks import Remark, to_metadata
from lgd.data.segmentations import segmentation_columns

_LARGEST = 2**63 - 1


def parse_coco(json_path: Path, content_hash: str) -> tuple[dict[str, Array], dict[str, Any]]:
    """Read and check an annotation file.

    Args:
        json_path: the file.
        content_hash: goes into the metadata.

    Returns:
        The columns and the metadata that `AnnotationIndex` reads.

    Raises:
        DataError: see the module.
    """
    document = _read_json(json_path)
    class_names, category_ids, name_remarks = _parse_categories(document, json_path)
    images = _parse_images(document, json_path)
    annotations, remarks = _parse_annotations(document, images, category_ids, json_path)
    metadata = {
        "kind": "coco",
        "content_hash": content_hash,
        "class_names": class_names,
        "category_ids": category_ids,
        "supercategories": _supercategories(document),
        "has_annotations": "annotations" in document,
        "remarks": [to_metadata(name_remarks + remarks)],
    }
    return images | annotations, metadata


def _read_json(path: Path) -> dict[str, Any]:
    # Millions of small objects that all stay: searching them for garbage over and over doubles the time.
    collecting = gc.isenabled()
    gc.disable()
    try:
        document = parse_json(read_text(path))
    except DataError:
        raise
    except ValueError as error:
        raise DataError(f"{path} {error}") from error
    finally:
        if collecting:
            gc.enable()
    if not isinstance(document, dict):
        raise DataError(f"{path} holds a {type(document).__name__}, not an object with images and categories")
    return document


def _parse_categories(document: dict[str, Any], path: Path) -> tuple[list[str], list[int], list[Remark]]:
    """Names, ids and remarks, ascending by id: a category's place is its label."""
    records = _records(document, "categories", path)
    ids = _integers(records, "id", "category", path)
    _refuse_duplicates(ids, "category", path)
    values = _values(records, "name", "category", path)
    order = np.argsort(ids)
    names = [_class_name(values[k], int(ids[k]), path) for k in order]
    ordered = ids[order].tolist()
    distinct = _distinct_names(names, ordered)
    changed = [new for old, new in zip(names, distinct, strict=True) if new != old]
    warning = f"categories that share a name are told apart by their ids: {name_some(changed)}"
    return distinct, ordered, [Remark("classes_of_one_name", len(changed), warning)] if changed else []


def _supercategories(document: dict[str, Any]) -> list[str]:
    """Of each category, ascending by id, the name of its supercategory; "" where it has none."""
    records = sorted(document["categories"], key=lambda record: record["id"])
    values = [record.get("supercategory") for record in records]
    return [value if isinstance(value, str) else "" for value in values]


def _class_name(value: Any, category_id: int, path: Path) -> str:
    """A name; a number as its text."""
    is_number = type(value) is int or (type(value) is float and math.isfinite(value))
    text = str(value) if is_number else value
    if not is_name(text):
        raise DataError(f'{path}: "name" of category {category_id} is {shown(value)}, not a name')
    return str(text)


def _distinct_names(names: Sequence[str], ids: Sequence[int]) -> list[str]:
    """The names, with the category's id behind those that occur twice, so that no class hides another."""
    occurrences = Counter(names)
    taken = {name for name, count in occurrences.items() if count == 1}
    distinct = []
    for name, category_id in zip(names, ids, strict=True):
        told_apart = name
        while occurrences[name] > 1 and (told_apart == name or told_apart in taken):
            told_apart += f" ({category_id})"
        taken.add(told_apart)
        distinct.append(told_apart)
    return distinct


def _parse_images(document: dict[str, Any], path: Path) -> dict[str, Array]:
    """The columns of the images, ascending by id."""
    records = _records(document, "images", path)
    ids = _integers(records, "id", "image", path)
    _refuse_duplicates(ids, "image", path)
    heights, widths = (_integers(records, key, "image", path) for key in ("height", "width"))
    file_names = _values(records, "file_name", "image", path)
    for image_id, height, width, name in zip(
        ids.tolist(), heights.tolist(), widths.tolist(), file_names, strict=True
    ):
        if wrong := check_size(height, width):
            raise DataError(f"{path}: the size of image {image_id}, {width} x {height}, {wrong}")
        if wrong := _wrong_with_file_name(name):
            raise DataError(f"{path}: file_name of image {image_id}, {shown(name)}, {wrong}")
    order = np.argsort(ids)
    names = [file_names[k] for k in order]
    return image_columns(ids[order], names, heights[order], widths[order])


def _wrong_with_file_name(name: Any) -> str | None:
    if not isinstance(name, str) or not name or not is_printable(name):
        return "is not a name"
    if leads_outside(name):
        return "leads out of the image folder; write it relative to that"
    return None


def _parse_annotations(
    document: dict[str, Any], images: dict[str, Array], category_ids: list[int], path: Path
) -> tuple[dict[str, Array], list[Remark]]:
    """The columns of the annotations, ascending by image, and the remarks."""
    records = _records(document, "annotations", path) if "annotations" in document else []
    ids = _integers(records, "id", "annotation", path)
    _refuse_duplicates(ids, "annotation", path)
    image = _positions(records, "image_id", "image", images["image_ids"], ids, path)
    label = _positions(records, "category_id", "category", np.array(category_ids, dtype=np.int64), ids, path)
    xywh = _boxes(records, ids, path)
    crowd = _crowds(records, ids, path)
    boxes = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)

    usable, remarks = usable_boxes(
        boxes,
        images["widths"][image],
        images["heights"][image],
        lambda which: f"annotations {name_some(ids[which].tolist())}",
    )
    order = np.argsort(image, kind="stable")
    records = [records[k] for k in order]
    columns = annotation_columns(
        len(images["image_ids"]),
        image[order],
        xywh=xywh[order],
        labels=label[order],
        ids=ids[order],
        areas=_areas(records, xywh[order], ids[order], path),
        crowd=crowd[order],
        difficult=np.zeros(len(order), dtype=np.bool_),
        usable=usable[order],
    )
    heights, widths = images["heights"][image[order]], images["widths"][image[order]]
    masks, mask_remarks = segmentation_columns(records, heights, widths, path)
    return columns | masks, remarks + mask_remarks


def _crowds(records: Sequence[Mapping[str, Any]], ids: Integers, path: Path) -> Flags:
    values = [record.get("iscrowd", 0) for record in records]
    wrong = np.array([value is not None and not _is_flag(value) for value in values], dtype=bool)
    _refuse(wrong, ids, "iscrowd of annotation", "is neither 0 nor 1", path)
    return np.array([bool(value) for value in values], dtype=np.bool_)


def _is_flag(value: Any) -> bool:
    return type(value) in (int, float, bool) and value in (0, 1)


def _boxes(records: Sequence[Mapping[str, Any]], ids: Integers, path: Path) -> Floats:
    """The records' boxes as they stand: (A, 4) x, y, width, height, all finite."""
    values = _values(records, "bbox", "annotation", path)
    wrong = np.array([not _is_four_numbers(value) for value in values], dtype=bool)
    _refuse(wrong, ids, "bbox of annotation", "is not four numbers", path)
    boxes = _as_floats([x for value in values for x in value]).reshape(-1, 4)
    _refuse(~np.all(np.isfinite(boxes), axis=1), ids, "bbox of annotation", "is NaN or infinite", path)
    too_large = np.any(np.abs(boxes) > MAX_COORDINATE, axis=1)
    _refuse(too_large, ids, "bbox of annotation", f"is beyond {MAX_COORDINATE} pixels", path)
    return boxes


def _is_four_numbers(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(type(x) in (int, float) for x in value)


def _as_floats(values: Sequence[float | None]) -> Floats:
    """Numbers of any size; NaN for what is absent, infinity for what is beyond all floats."""
    try:
        return np.array(values, dtype=np.float64)
    except OverflowError:
        return np.array([np.inf if type(x) is int and abs(x) >= 2**1023 else x for x in values], np.float64)


def _areas(records: Sequence[Mapping[str, Any]], xywh: Floats, ids: Integers, path: Path) -> Floats:
    """The records' areas, or their boxes' where they have none."""
    values = [record.get("area") for record in records]
    wrong = np.array([value is not None and type(value) not in (int, float) for value in values], dtype=bool)
    _refuse(wrong, ids, "area of annotation", "is not a number", path)
    areas = _as_floats(values)
    _refuse(np.isinf(areas), ids, "area of annotation", "is infinite", path)
    return np.where(np.isnan(areas), xywh[:, 2] * xywh[:, 3], areas)


def _records(document: Mapping[str, Any], key: str, path: Path) -> list[Any]:
    if key not in document:
        raise DataError(f'{path} has no "{key}"; it has {name_some(list(document), shown) or "nothing"}')
    records = document[key]
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise DataError(f'{path}: "{key}" is not a list of objects')
    if not records and key != "annotations":
        raise DataError(f'{path}: "{key}" is empty')
    return records


def _values(records: Sequence[Mapping[str, Any]], key: str, kind: str, path: Path) -> list[Any]:
    """The records' values of a key that each must have."""
    missing = [number for number, record in enumerate(records) if key not in record]
    if missing:
        named = name_some(missing, lambda n: f"{kind} {_name_of(records[n], n)}")
        raise DataError(f'{path}: no "{key}" in {named}')
    return [record[key] for record in records]


def _name_of(record: Mapping[str, Any], number: int) -> str:
    return shown(record["id"]) if "id" in record else f"number {number}"


def _integers(records: Sequence[Mapping[str, Any]], key: str, kind: str, path: Path) -> Integers:
    values = _values(records, key, kind, path)
    for number, value in enumerate(values):
        if type(value) is not int or abs(value) > _LARGEST:
            named = f"{kind} {_name_of(records[number], number)}"
            raise DataError(
                f'{path}: "{key}" of {named} is {shown(value)}, not a whole number of at most 64 bits'
            )
    return np.array(values, dtype=np.int64)


def _positions(
    records: Sequence[Mapping[str, Any]], key: str, kind: str, known: Integers, ids: Integers, path: Path
) -> Integers:
    """Where each record's `key` stands in `known`, which ascends."""
    values = _integers(records, key, "annotation", path)
    positions = np.searchsorted(known, values)
    unknown = ~np.isin(values, known)
    if unknown.any():
        raise DataError(
            f"{path}: annotations {name_some(ids[unknown].tolist())} are of {kind} "
            f"{name_some(np.unique(values[unknown]).tolist())}, which the file does not list"
        )
    return positions


def _refuse(wrong: Flags, ids: Integers, subject: str, complaint: str, path: Path) -> None:
    if wrong.any():
        raise DataError(f"{path}: {subject} {name_some(ids[wrong].tolist())} {complaint}")


def _refuse_duplicates(ids: Integers, kind: str, path: Path) -> None:
    unique, counts = np.unique(ids, return_counts=True)
    if (counts > 1).any():
        raise DataError(f"{path}: {kind} id {name_some(unique[counts > 1].tolist())} occurs more than once")
