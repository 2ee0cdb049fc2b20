"""The images of a COCO-style JSON: ids, names and sizes, as the file says them or as found since."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lgd.data.annotations import image_columns
from lgd.data.columns import Array
from lgd.data.errors import DataError
from lgd.data.ids import Ids, read_ids
from lgd.data.index import Integers
from lgd.data.limits import check_size, is_printable, name_some, plain, shown
from lgd.data.records import name_of, records_of, values_of
from lgd.data.remarks import Remark
from lgd.words import counted


@dataclass(frozen=True)
class Pictures:
    """What the pictures of a set say, where the annotation file does not or says it of another machine.

    Attributes:
        file_names: of each image in the columns' order, the path below the image folder.
        sizes: (height, width) by the place of an image, of those whose size the file does not say.
        remarks: what there is to say of it.
    """

    file_names: Sequence[str]
    sizes: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    remarks: Sequence[Remark] = ()


def parse_images(
    document: dict[str, Any], path: Path, pictures: Pictures | None
) -> tuple[dict[str, Array], Ids, list[Remark]]:
    """Read the images.

    Args:
        document: the whole file.
        path: the file, for messages.
        pictures: what was found since; None: sizes that the file does not say are 0 x 0.

    Returns:
        The columns of the images and their ids, both ascending by id, and the remarks.

    Raises:
        DataError: a record is not what it should be, or two of one id differ.
    """
    records = records_of(document, "images", path)
    ids, remarks = read_ids(records, "image", path)
    ids, records, merged = _merge(ids, records, path)
    order = np.argsort(ids.numbers, kind="stable")
    ids, records = ids.take(order), [records[k] for k in order]
    names = values_of(records, "file_name", "image", path)
    for place, name in enumerate(names):
        if not isinstance(name, str) or not name or not is_printable(name):
            raise DataError(
                f"{path}: file_name of {name_of(records, place, 'image')}, {shown(name)}, is not a name"
            )
    heights, widths, size_remarks = _sizes(records, path)
    if pictures is not None:
        names = list(pictures.file_names)
        for place, size in pictures.sizes.items():
            heights[place], widths[place] = size
        remarks += pictures.remarks
    remarks += merged + size_remarks + _say_twice(names, records)
    return image_columns(ids.numbers, names, heights, widths, ids.written), ids, remarks


def _merge(ids: Ids, records: list[Any], path: Path) -> tuple[Ids, list[Any], list[Remark]]:
    """Leave out records that are there before; raises where two of one id differ."""
    _, firsts, places = np.unique(ids.numbers, return_index=True, return_inverse=True)
    if len(firsts) == len(records):
        return ids, records, []
    again = []
    for place, first in enumerate(firsts[places].tolist()):
        if records[place] != records[first]:
            names = " and ".join(shown(records[k].get("file_name")) for k in (first, place))
            raise DataError(
                f"{path}: image id {plain(str(records[first]['id']))} occurs more than once, as {names}; "
                "give each image an id of its own"
            )
        if place != first:
            again.append(shown(records[place]["id"]))
    kept = np.sort(firsts)
    text = (
        f"{counted(len(again), 'image is', 'images are')} listed twice in the same words and taken "
        f"once (images {name_some(again)})"
    )
    return ids.take(kept), [records[k] for k in kept], [Remark("images_merged", len(again), text)]


def _sizes(records: Sequence[Mapping[str, Any]], path: Path) -> tuple[Integers, Integers, list[Remark]]:
    """Heights and widths; 0 and 0 where the file lacks one of them."""
    sizes, as_text = [], []
    for place, record in enumerate(records):
        values = record.get("height"), record.get("width")
        if None in values:
            sizes.append((0, 0))
            continue
        height, width = map(_side, values)
        if height is None or width is None:
            raise DataError(
                f"{path}: the size of {name_of(records, place, 'image')}, {shown(values[1])} x "
                f"{shown(values[0])}, is not two whole numbers"
            )
        if wrong := check_size(height, width):
            raise DataError(
                f"{path}: the size of {name_of(records, place, 'image')}, {width} x {height}, {wrong}"
            )
        if isinstance(values[0], str) or isinstance(values[1], str):
            as_text.append(shown(record["id"]))
        sizes.append((height, width))
    heights, widths = np.array(sizes, dtype=np.int64).T.copy()
    if not as_text:
        return heights, widths, []
    text = (
        f"the size of {counted(len(as_text), 'image')} is text, read as the numbers (images "
        f"{name_some(as_text)})"
    )
    return heights, widths, [Remark("sizes_text", len(as_text), text)]


def _side(value: Any) -> int | None:
    if type(value) is int:
        return value
    if isinstance(value, str):
        return int(value) if value.isascii() and value.isdecimal() and len(value) <= 20 else None
    if type(value) is float:
        return int(value) if value.is_integer() else None
    return None


def _say_twice(names: Sequence[str], records: Sequence[Mapping[str, Any]]) -> list[Remark]:
    if len(set(names)) == len(names):
        return []
    first = {name: place for place, name in reversed(list(enumerate(names)))}
    again = [place for place, name in enumerate(names) if first[name] != place]
    named = name_some(again, lambda place: f"{plain(names[place])} of image {shown(records[place]['id'])}")
    text = (
        f"{counted(len(again), 'image is', 'images are')} of a picture that another image is of, too "
        f"({named}): it is trained on once for each, without the objects of the other"
    )
    return [Remark("pictures_twice", len(again), text)]
