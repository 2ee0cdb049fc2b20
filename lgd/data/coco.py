"""COCO-style annotation files: opening them through the cache and checking that their images are there."""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from pathlib import Path

from lgd.data.cache import cached_columns
from lgd.data.coco_json import parse_coco
from lgd.data.errors import DataError
from lgd.data.index import AnnotationIndex

logger = logging.getLogger(__name__)


def load_coco(json_path: Path, image_dir: Path, *, name: str) -> AnnotationIndex:
    """Open a COCO-style data set.

    The first call on a content parses the JSON and caches flat columns beside it (or in the user's cache
    folder); later calls map these. What was dropped is logged on every call.

    Args:
        json_path: the annotation file; "annotations" may be absent in a test set.
        image_dir: the folder that the file names are relative to.
        name: what messages call the set.

    Raises:
        DataError: the file, the folder or images are absent, or the file is not what COCO's format says.
    """
    if not json_path.is_file():
        raise DataError(f"{name}: there is no annotation file {json_path}")
    if not image_dir.is_dir():
        raise DataError(f"{name}: there is no image folder {image_dir}")
    cache_path = cached_columns(json_path, lambda content_hash: parse_coco(json_path, content_hash))
    index = AnnotationIndex(cache_path, name=name, json_path=json_path, image_dir=image_dir)
    _check_images_present(index)
    for warning in index.warnings:
        logger.warning("%s", warning)
    return index


def _check_images_present(index: AnnotationIndex) -> None:
    """Compare the listed file names with what each folder holds, listing every folder once."""
    listed = defaultdict(list)
    for i in range(len(index)):
        folder, _, file_name = index.file_name(i).rpartition("/")
        listed[folder].append((file_name, i))
    absent = []
    for folder, entries in listed.items():
        present = _names_in(index.image_dir / folder)
        absent += [i for file_name, i in entries if file_name not in present]
    if absent:
        first = ", ".join(f"{index.file_name(i)} (image {index.image_ids[i]})" for i in absent[:3])
        more = f" and {len(absent) - 3} more" if len(absent) > 3 else ""
        raise DataError(f"{index.json_path} lists images that are not in {index.image_dir}: {first}{more}")


def _names_in(folder: Path) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries}
    except FileNotFoundError:
        return set()
