"""CrowdHuman: people in crowds, one JSON object a line (.odgt), images without their sizes.

The full boxes are the objects, also where they are hidden; they reach outside their images and are clipped
on use. Regions to ignore (tags other than "person", and "ignore" in a box's "extra") become crowds.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lgd.data.annotations import ParsedImage, columns_of_images, is_box
from lgd.data.cache import Columns, cached_columns
from lgd.data.errors import DataError
from lgd.data.images import read_size
from lgd.data.index import AnnotationIndex
from lgd.data.limits import (
    MAX_ANNOTATION_BYTES,
    MAX_COORDINATE,
    as_flag,
    is_folder,
    name_some,
    parse_json,
    plain,
    read_bytes,
    shown,
)
from lgd.data.presence import check_images_present, names_in
from lgd.data.remarks import to_metadata
from lgd.data.splits import Split
from lgd.data.walking import files_in
from lgd.notices import follow

logger = logging.getLogger(__name__)

_NUM_THREADS = 16
"""Reading headers waits for the disk or the network, not for the processor."""


@dataclass(frozen=True)
class CrowdHumanSplit(Split):
    """A split of CrowdHuman.

    Attributes:
        path: ROOT/annotation_SPLIT.odgt.
        image_dir: ROOT/Images.
    """

    path: Path
    image_dir: Path


def find_crowdhuman(root: Path, wanted: str | None = None) -> list[CrowdHumanSplit]:
    """Find the splits of a folder; all, whichever is wanted.

    Raises:
        DataError: the folder cannot be listed.
    """
    splits = []
    for file_name in files_in(root, ".odgt"):
        if match := re.fullmatch(r"annotation_(.+)\.odgt", file_name):
            spec, layout = f"crowdhuman:{root}:{match[1]}", f"CrowdHuman ({file_name}, Images/)"
            splits.append(
                CrowdHumanSplit("crowdhuman", match[1], spec, layout, root / file_name, root / "Images")
            )
    return splits


def load_crowdhuman(split: CrowdHumanSplit, *, name: str) -> AnnotationIndex:
    """Open a split of CrowdHuman: ROOT/annotation_SPLIT.odgt and ROOT/Images/ID.jpg.

    Images are numbered from 1 in the file's order. The first call on a content reads every image's size from
    its header; later calls have it from the cache. A file without any "gtboxes" has no annotations.

    Args:
        split: where it lies.
        name: what messages call the set.

    Raises:
        DataError: the folder or images are absent, an image's header cannot be read, or a line is not what
            the format says.
    """
    path, image_dir = split.path, split.image_dir
    if not is_folder(image_dir):
        raise DataError(f"{name}: there is no image folder {image_dir}")
    cache_path = cached_columns(path, lambda content_hash: _parse(path, image_dir, content_hash))
    index = AnnotationIndex(cache_path, name=name, json_path=path, image_dir=image_dir, layout=split.layout)
    check_images_present(index)
    for warning in index.warnings:
        logger.warning("%s", warning)
    return index


def _parse(path: Path, image_dir: Path, content_hash: str) -> Columns:
    lines = _read_lines(path)
    has_annotations = any("gtboxes" in record for _, record in lines)
    sizes = _read_sizes([_file_name(record) for _, record in lines], image_dir, path)
    images = [
        _parse_image(record, size, has_annotations, f"{path}, line {number}")
        for (number, record), size in zip(lines, sizes, strict=True)
    ]
    columns, remarks = columns_of_images(images, path, may_reach_outside=True)
    metadata = {
        "kind": "crowdhuman",
        "content_hash": content_hash,
        "class_names": ["person"],
        "category_ids": [1],
        "has_annotations": has_annotations,
        "remarks": [to_metadata(remarks)],
    }
    return columns, metadata


def _read_lines(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """The objects of the file, each with its line's number."""
    lines: list[tuple[int, dict[str, Any]]] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(read_bytes(path, MAX_ANNOTATION_BYTES).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            record = parse_json(line)
        except ValueError as error:
            raise DataError(f"{path}, line {number} {error}") from error
        if not isinstance(record, dict) or not isinstance(record.get("ID"), str) or not record["ID"]:
            raise DataError(f'{path}, line {number} is not an object with an "ID"')
        if record["ID"] in seen:
            raise DataError(
                f"{path}, line {number}: ID {plain(record['ID'])} is in line {seen[record['ID']]} too"
            )
        seen[record["ID"]] = number
        lines.append((number, record))
    if not lines:
        raise DataError(f"{path} is empty")
    return lines


def _file_name(record: Mapping[str, Any]) -> str:
    return f"{record['ID']}.jpg"


def _read_sizes(file_names: Sequence[str], image_dir: Path, path: Path) -> list[tuple[int, int]]:
    """The images' heights and widths, from their headers."""
    absent = sorted(set(file_names) - names_in(image_dir))
    if absent:
        raise DataError(f"{path} lists images that are not in {image_dir}: {name_some(absent, plain)}")
    with ThreadPoolExecutor(_NUM_THREADS) as threads:
        found = threads.map(lambda file_name: read_size(image_dir / file_name), file_names)
        return list(follow(found, f"{path}: sizes of the pictures", len(file_names)))


def _parse_image(
    record: Mapping[str, Any], size: tuple[int, int], has_annotations: bool, place: str
) -> ParsedImage:
    objects = record.get("gtboxes", None if has_annotations else [])
    if not isinstance(objects, list) or not all(isinstance(each, dict) for each in objects):
        raise DataError(f'{place}: "gtboxes" of {plain(record["ID"])} is not a list of objects')
    boxes = []
    for number, each in enumerate(objects):
        box = each.get("fbox")
        if not is_box(box):
            raise DataError(
                f'{place}: "fbox" of box {number} of {plain(record["ID"])} is {shown(box)}, not four numbers '
                f"of at most {MAX_COORDINATE}"
            )
        boxes.append((box[0], box[1], box[0] + box[2], box[1] + box[3]))
    return ParsedImage(
        file_name=_file_name(record),
        height=size[0],
        width=size[1],
        boxes=boxes,
        labels=[0] * len(boxes),
        crowd=[_is_ignored(each, place) for each in objects],
        difficult=[False] * len(boxes),
    )


def _is_ignored(each: Mapping[str, Any], place: str) -> bool:
    extra = each.get("extra")
    value = extra.get("ignore", 0) if isinstance(extra, dict) else 0
    ignored = as_flag(value or 0)
    if ignored is None:
        raise DataError(f'{place}: "ignore" of a box is {shown(value)}, neither 0 nor 1')
    return ignored or each.get("tag") != "person"
