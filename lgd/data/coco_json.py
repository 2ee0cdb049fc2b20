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

from lgd.data.annotations import annotation_columns, repeated_boxes, usable_boxes
from lgd.data.coco_images import Pictures, parse_images
from lgd.data.coco_values import read_areas, read_boxes, read_crowds, say_of_boxes, say_of_crowds
from lgd.data.columns import Array
from lgd.data.errors import DataError
from lgd.data.ids import Ids, read_ids, read_references
from lgd.data.index import Flags, Integers
from lgd.data.limits import is_name, name_some, parse_json, read_text, shown
from lgd.data.records import records_of, values_of
from lgd.data.remarks import Remark, to_metadata
from lgd.data.segmentations import is_empty, segmentation_columns
from lgd.words import counted, say_type


def parse_coco(
    json_path: Path, content_hash: str, pictures: Pictures | None = None
) -> tuple[dict[str, Array], dict[str, Any]]:
    """Read and check an annotation file.

    Without `pictures`, names are as written, and images whose size the file does not say have the size 0 x 0,
    so that what is said of their boxes and masks means nothing.

    Args:
        json_path: the file.
        content_hash: goes into the metadata.
        pictures: what was found of the images since.

    Returns:
        The columns and the metadata that `AnnotationIndex` reads.

    Raises:
        DataError: see the module.
    """
    document = _read_json(json_path)
    class_names, categories, supercategories, class_remarks = _parse_categories(document, json_path)
    columns, images, image_remarks = parse_images(document, json_path, pictures)
    annotations, remarks = _parse_annotations(document, columns, images, categories, json_path)
    metadata = {
        "kind": "coco",
        "content_hash": content_hash,
        "class_names": class_names,
        "category_ids": categories.numbers.tolist(),
        "written_category_ids": {
            str(number): written for number, written in _written(categories) if written is not None
        },
        "supercategories": supercategories,
        "has_annotations": "annotations" in document,
        "remarks": [to_metadata(class_remarks + image_remarks + remarks)],
    }
    return columns | annotations, metadata


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
        raise DataError(f"{path} holds {say_type(document)}, not an object with images and categories")
    return document


def _parse_categories(document: dict[str, Any], path: Path) -> tuple[list[str], Ids, list[str], list[Remark]]:
    """Names, ids, supercategories and remarks, ascending by id: a category's place is its label."""
    records = records_of(document, "categories", path)
    ids, remarks = read_ids(records, "category", path)
    _refuse_duplicates(ids.numbers, path)
    values = values_of(records, "name", "category", path)
    order = np.argsort(ids.numbers)
    names = [_class_name(values[k], records[k]["id"], path) for k in order]
    ids = ids.take(order)
    distinct = _distinct_names(
        names, [str(number if written is None else written) for number, written in _written(ids)]
    )
    changed = [new for old, new in zip(names, distinct, strict=True) if new != old]
    if changed:
        text = f"categories that share a name are told apart by their ids: {name_some(changed)}"
        remarks.append(Remark("classes_of_one_name", len(changed), text))
    return distinct, ids, [_supercategory(records[k]) for k in order], remarks


def _supercategory(record: Mapping[str, Any]) -> str:
    """The name of a category's supercategory; "" where it has none."""
    value = record.get("supercategory")
    return value if isinstance(value, str) else ""


def _written(ids: Ids) -> list[tuple[int, int | str | None]]:
    """Each id's number, and as what the file has it where that is something else."""
    return list(zip(ids.numbers.tolist(), ids.written or [None] * len(ids.numbers), strict=True))


def _class_name(value: Any, category_id: Any, path: Path) -> str:
    """A name; a number as its text."""
    is_number = type(value) is int or (type(value) is float and math.isfinite(value))
    text = str(value) if is_number else value
    if not is_name(text):
        raise DataError(f'{path}: "name" of category {shown(category_id)} is {shown(value)}, not a name')
    return str(text)


def _distinct_names(names: Sequence[str], ids: Sequence[str]) -> list[str]:
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


def _parse_annotations(
    document: dict[str, Any], images: dict[str, Array], image_ids: Ids, categories: Ids, path: Path
) -> tuple[dict[str, Array], list[Remark]]:
    """The columns of the annotations, ascending by image, and the remarks."""
    records = records_of(document, "annotations", path) if "annotations" in document else []
    records, remarks = _without_points(records)
    ids, id_remarks = _annotation_ids(records, path)
    image, image_remarks = read_references(records, "image_id", "image", image_ids, ids, path)
    label, label_remarks = read_references(records, "category_id", "category", categories, ids, path)
    heights, widths = images["heights"][image], images["widths"][image]
    xywh, box_remarks = read_boxes(records, heights, widths, ids, path)
    crowd, crowd_remarks = read_crowds(records, ids, path)
    areas, area_remarks = read_areas(records, xywh, heights * widths, ids, path)
    boxes = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)

    def describe(which: Flags) -> str:
        return f"annotations {name_some(ids[which].tolist())}"

    usable, use_remarks = usable_boxes(boxes, widths, heights, describe)
    remarks += repeated_boxes(image, label, xywh, usable & ~crowd, describe)
    order = np.argsort(image, kind="stable")  # the columns', while in the file's the records are read faster
    columns = annotation_columns(
        len(images["image_ids"]),
        image[order],
        xywh=xywh[order],
        labels=label[order],
        ids=ids[order],
        areas=areas[order],
        crowd=crowd[order],
        difficult=np.zeros(len(order), dtype=np.bool_),
        usable=usable[order],
    )
    records = [records[k] for k in order]
    masks, mask_remarks = segmentation_columns(records, heights[order], widths[order], ids[order].tolist())
    remarks += id_remarks + image_remarks + label_remarks + box_remarks + crowd_remarks + area_remarks
    remarks += use_remarks + say_of_boxes(xywh, heights, widths) + say_of_crowds(crowd)
    return columns | masks, remarks + mask_remarks


def _without_points(records: list[Any]) -> tuple[list[Any], list[Remark]]:
    """Leave out regions without a box and a mask, as which VIA writes points."""
    points = [
        place
        for place, record in enumerate(records)
        if record.get("bbox") == [] and is_empty(record.get("segmentation"))
    ]
    if not points:
        return records, []
    named = name_some([shown(records[place].get("id")) for place in points])
    text = (
        f"dropped {counted(len(points), 'annotation')} with an empty bbox and no segmentation "
        f"(annotations {named})"
    )
    dropped = set(points)
    kept = [record for place, record in enumerate(records) if place not in dropped]
    return kept, [Remark("annotations_empty", len(points), text)]


def _annotation_ids(records: Sequence[Mapping[str, Any]], path: Path) -> tuple[Integers, list[Remark]]:
    """Ids of which no two are equal: numbered from 1 where the file's are not so."""
    ids, remarks = read_ids(records, "annotation", path)
    unique, counts = np.unique(ids.numbers, return_counts=True)
    if len(unique) == len(ids.numbers):
        return ids.numbers, remarks
    again = unique[counts > 1].tolist()
    text = (
        f"{counted(len(ids.numbers) - len(unique), 'annotation has', 'annotations have')} the id of "
        f"another ({name_some(again)}): all {len(ids.numbers)} are numbered anew, from 1 in the file's order"
    )
    return np.arange(1, len(ids.numbers) + 1), [
        *remarks,
        Remark("annotation_ids_repeated", len(ids.numbers) - len(unique), text),
    ]


def _refuse_duplicates(ids: Integers, path: Path) -> None:
    unique, counts = np.unique(ids, return_counts=True)
    if (counts > 1).any():
        raise DataError(f"{path}: category id {name_some(unique[counts > 1].tolist())} occurs more than once")
