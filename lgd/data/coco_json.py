"""From a COCO-style JSON to checked columns.

What makes training wrong is a `DataError` in one line; what everyone drops is dropped and counted in a
warning.

Legend: I images, A annotations, K categories.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lgd.data.annotations import annotation_columns, image_columns, name_some, usable_boxes
from lgd.data.columns import Array
from lgd.data.errors import DataError
from lgd.data.index import Flags, Floats, Integers
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
    class_names, category_ids = _parse_categories(document, json_path)
    images = _parse_images(document, json_path)
    annotations, warnings = _parse_annotations(document, images, category_ids, json_path)
    metadata = {
        "kind": "coco",
        "content_hash": content_hash,
        "class_names": class_names,
        "category_ids": category_ids,
        "has_annotations": "annotations" in document,
        "warnings": warnings,
    }
    return images | annotations, metadata


def _read_json(path: Path) -> dict[str, Any]:
    # Millions of small objects that all stay: searching them for garbage over and over doubles the time.
    collecting = gc.isenabled()
    gc.disable()
    try:
        with path.open(encoding="utf-8") as file:
            document = json.load(file)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path} is not whole JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    finally:
        if collecting:
            gc.enable()
    if not isinstance(document, dict):
        raise DataError(f"{path} holds a {type(document).__name__}, not an object with images and categories")
    return document


def _parse_categories(document: dict[str, Any], path: Path) -> tuple[list[str], list[int]]:
    """Names and ids, ascending by id: a category's place is its label."""
    records = _records(document, "categories", path)
    ids = _integers(records, "id", "category", path)
    _refuse_duplicates(ids, "category", path)
    names = [str(name) for name in _values(records, "name", "category", path)]
    order = np.argsort(ids)
    return [names[k] for k in order], ids[order].tolist()


def _parse_images(document: dict[str, Any], path: Path) -> dict[str, Array]:
    """The columns of the images, ascending by id."""
    records = _records(document, "images", path)
    ids = _integers(records, "id", "image", path)
    _refuse_duplicates(ids, "image", path)
    sizes = {key: _integers(records, key, "image", path) for key in ("height", "width")}
    for key, values in sizes.items():
        _refuse(values <= 0, ids, f"{key} of image", "is not positive", path)
    file_names = _values(records, "file_name", "image", path)
    wrong = np.array([not isinstance(name, str) or not name for name in file_names], dtype=bool)
    _refuse(wrong, ids, "file_name of image", "is not a name", path)
    order = np.argsort(ids)
    names = [file_names[k] for k in order]
    return image_columns(ids[order], names, sizes["height"][order], sizes["width"][order])


def _parse_annotations(
    document: dict[str, Any], images: dict[str, Array], category_ids: list[int], path: Path
) -> tuple[dict[str, Array], list[str]]:
    """The columns of the annotations, ascending by image, and the warnings."""
    records = _records(document, "annotations", path) if "annotations" in document else []
    ids = _integers(records, "id", "annotation", path)
    _refuse_duplicates(ids, "annotation", path)
    image = _positions(records, "image_id", "image", images["image_ids"], ids, path)
    label = _positions(records, "category_id", "category", np.array(category_ids, dtype=np.int64), ids, path)
    xywh = _boxes(records, ids, path)
    crowd = np.array([bool(record.get("iscrowd", 0)) for record in records], dtype=np.bool_)
    boxes = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)

    keep, warnings = usable_boxes(
        boxes,
        images["widths"][image],
        images["heights"][image],
        lambda which: f"annotations {name_some(ids[which])}",
        path,
    )
    order = np.flatnonzero(keep)
    order = order[np.argsort(image[order], kind="stable")]
    kept = [records[k] for k in order]
    columns = annotation_columns(
        len(images["image_ids"]),
        image[order],
        boxes=boxes[order],
        labels=label[order],
        ids=ids[order],
        areas=_areas(kept, xywh[order], ids[order], path),
        crowd=crowd[order],
        difficult=np.zeros(len(order), dtype=np.bool_),
    )
    heights, widths = images["heights"][image[order]], images["widths"][image[order]]
    masks, mask_warnings = segmentation_columns(kept, heights, widths, path)
    return columns | masks, warnings + mask_warnings


def _boxes(records: Sequence[Mapping[str, Any]], ids: Integers, path: Path) -> Floats:
    """The records' boxes as they stand: (A, 4) x, y, width, height, all finite."""
    values = _values(records, "bbox", "annotation", path)
    wrong = np.array([not _is_box(value) for value in values], dtype=bool)
    _refuse(wrong, ids, "bbox of annotation", "is not four numbers", path)
    boxes = np.array(values, dtype=np.float64).reshape(-1, 4)
    _refuse(~np.all(np.isfinite(boxes), axis=1), ids, "bbox of annotation", "is NaN or infinite", path)
    return boxes


def _is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(type(x) in (int, float) for x in value)


def _areas(records: Sequence[Mapping[str, Any]], xywh: Floats, ids: Integers, path: Path) -> Floats:
    """The records' areas, or their boxes' where they have none."""
    values = [record.get("area") for record in records]
    wrong = np.array([value is not None and type(value) not in (int, float) for value in values], dtype=bool)
    _refuse(wrong, ids, "area of annotation", "is not a number", path)
    areas = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    return np.where(np.isnan(areas), xywh[:, 2] * xywh[:, 3], areas)


def _records(document: Mapping[str, Any], key: str, path: Path) -> list[Any]:
    if key not in document:
        raise DataError(f'{path} has no "{key}"; it has {", ".join(map(repr, document)) or "nothing"}')
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
        named = (
            f"{kind} {records[n]['id']}" if "id" in records[n] else f"{kind} number {n}" for n in missing[:5]
        )
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise DataError(f'{path}: no "{key}" in {", ".join(named)}{more}')
    return [record[key] for record in records]


def _integers(records: Sequence[Mapping[str, Any]], key: str, kind: str, path: Path) -> Integers:
    values = _values(records, key, kind, path)
    for number, value in enumerate(values):
        if type(value) is not int or abs(value) > _LARGEST:
            named = f"{kind} {records[number].get('id', f'number {number}')}"
            raise DataError(f'{path}: "{key}" of {named} is {value!r}, not a whole number')
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
            f"{path}: annotations {name_some(ids[unknown])} are of {kind} "
            f"{name_some(np.unique(values[unknown]))}, which the file does not list"
        )
    return positions


def _refuse(wrong: Flags, ids: Integers, subject: str, complaint: str, path: Path) -> None:
    if wrong.any():
        raise DataError(f"{path}: {subject} {name_some(ids[wrong])} {complaint}")


def _refuse_duplicates(ids: Integers, kind: str, path: Path) -> None:
    unique, counts = np.unique(ids, return_counts=True)
    if (counts > 1).any():
        raise DataError(f"{path}: {kind} id {name_some(unique[counts > 1])} occurs more than once")
