"""Which columns an index is made of, and whether a file has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np

from lgd.data.columns import Array
from lgd.data.remarks import are_remarks

Kind = Literal["coco", "voc", "crowdhuman"]
"""Whose rules a data set is scored by."""

_PER_IMAGE = ("image_ids", "heights", "widths", "counts")
PER_ANNOTATION = ("xywh", "labels", "annotation_ids", "areas", "crowd", "difficult", "usable")
_OFFSETS = {
    "part_offsets": "image_ids",
    "file_name_offsets": "file_names",
    "written_id_offsets": "written_ids",
    "annotation_offsets": "labels",
    "polygon_offsets": "point_offsets",
    "point_offsets": "points",
    "run_offsets": "runs",
}
"""Offsets and what they count."""

_TYPES = {
    **dict.fromkeys((*_PER_IMAGE, *_OFFSETS, "labels", "annotation_ids"), np.int64),
    **dict.fromkeys(("xywh", "areas", "points"), np.float64),
    **dict.fromkeys(("crowd", "difficult", "usable"), np.bool_),
    **dict.fromkeys(("file_names", "written_ids"), np.uint8),
    "runs": np.uint32,
}


_ROWS = {"xywh": (4,)}
"""Shapes of the rows of columns that have some."""


def check_columns(columns: Mapping[str, Array], metadata: Mapping[str, Any]) -> None:
    """See that these are the columns of an index, of types and lengths that fit together.

    Raises:
        ValueError: they are not.
    """
    if columns.keys() != _TYPES.keys():
        raise ValueError("it does not have the columns of annotations")
    for name, column in columns.items():
        if column.dtype != _TYPES[name] or column.ndim == 0 or column.shape[1:] != _ROWS.get(name, ()):
            raise ValueError(f"column {name} is of {column.dtype} {column.shape}")
    num_images, num_annotations = len(columns["image_ids"]), len(columns["labels"])
    lengths = dict.fromkeys(_PER_IMAGE, num_images) | dict.fromkeys(PER_ANNOTATION, num_annotations)
    lengths |= dict.fromkeys(
        ("file_name_offsets", "written_id_offsets", "annotation_offsets"), num_images + 1
    )
    lengths |= dict.fromkeys(("polygon_offsets", "run_offsets"), num_annotations + 1)
    for name, length in lengths.items():
        if len(columns[name]) != length:
            raise ValueError(f"column {name} has {len(columns[name])} entries, not {length}")
    for name, target in _OFFSETS.items():
        end = len(columns[target]) - (target == "point_offsets")
        if len(columns[name]) == 0 or columns[name][0] != 0 or columns[name][-1] != end:
            raise ValueError(f"column {name} does not fit {target}")
    _check_metadata(metadata)


def _check_metadata(metadata: Mapping[str, Any]) -> None:
    names, ids = metadata.get("class_names"), metadata.get("category_ids")
    remarks = metadata.get("remarks")
    supercategories, left_out = metadata.get("supercategories"), metadata.get("left_out", {})
    if not (
        metadata.get("kind") in get_args(Kind)
        and isinstance(metadata.get("content_hash"), str)
        and isinstance(metadata.get("has_annotations"), bool)
        and isinstance(names, list)
        and isinstance(ids, list)
        and len(names) == len(ids)
        and all(isinstance(name, str) for name in names)
        and all(type(category_id) is int for category_id in ids)
        and (supercategories is None or _are_texts(supercategories, len(names)))
        and isinstance(left_out, dict)
        and all(type(category_id) is int for category_id in left_out.values())
        and _are_ids(metadata.get("written_category_ids", {}))
        and isinstance(remarks, list)
        and all(map(are_remarks, remarks))
    ):
        raise ValueError("its header does not say what it has to")


def _are_texts(content: Any, number: int) -> bool:
    return (
        isinstance(content, list)
        and len(content) == number
        and all(isinstance(each, str) for each in content)
    )


def _are_ids(content: Any) -> bool:
    return isinstance(content, dict) and all(
        number.removeprefix("-").isdecimal() and type(written) in (int, str)
        for number, written in content.items()
    )
