"""COCO-style annotation files: opening them through the cache and checking that their images are there."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

from lgd.data.cache import Columns, cached_columns
from lgd.data.coco_images import Pictures
from lgd.data.coco_json import parse_coco
from lgd.data.coco_layouts import CocoSplit, describe, find_image_dir
from lgd.data.errors import DataError
from lgd.data.index import AnnotationIndex
from lgd.data.limits import is_file, is_folder
from lgd.data.pictures import with_pictures
from lgd.notices import waiting

logger = logging.getLogger(__name__)

_BYTES_PER_SECOND = 10e6
"""Of a JSON on one core, to guess the time left: 20 million with COCO's polygons, 8 with boxes alone."""


def load_coco_split(split: CocoSplit, *, name: str, image_dir: Path | None = None) -> AnnotationIndex:
    """Open a split that was found.

    Args:
        split: where it lies.
        name: what messages call the set.
        image_dir: the folder of its images; None looks for it.

    Raises:
        DataError: see `load_coco`; or images of the same names are in several folders.
    """
    folder = find_image_dir(split) if image_dir is None else image_dir
    return load_coco(split.json_path, folder, name=name, layout=describe(split, folder), root=split.root)


def load_coco(
    json_path: Path, image_dir: Path, *, name: str, layout: str = "", root: Path | None = None
) -> AnnotationIndex:
    """Open a COCO-style data set.

    The first call on a content parses the JSON and caches flat columns in a folder beside it (or in the
    user's cache folder); later calls map these. What was dropped is logged on every call. Pictures that
    do not lie where the file says, and sizes that it does not say, are looked for (`lgd.data.pictures`).

    Args:
        json_path: the annotation file; "annotations" may be absent in a test set.
        image_dir: the folder that the file names are relative to.
        name: what messages call the set.
        layout: how it lies, in words, where that is known better than by these two.
        root: the folder of the whole set, which file names may be relative to.

    Raises:
        DataError: the file, the folder or images are absent, or the file is not what COCO's format says.
    """
    if not is_file(json_path):
        raise DataError(f"{name}: there is no annotation file {json_path}")
    if not is_folder(image_dir):
        raise DataError(f"{name}: there is no image folder {image_dir}")
    cache_path = cached_columns(json_path, partial(_parse, json_path, name))
    layout = layout or f"COCO ({json_path.name}, pictures in {image_dir.name}/)"
    index = AnnotationIndex(cache_path, name=name, json_path=json_path, image_dir=image_dir, layout=layout)
    index = with_pictures(index, root, partial(_parse, json_path, name))
    for warning in index.warnings:
        logger.warning("%s", warning)
    return index


def _parse(json_path: Path, name: str, content_hash: str, pictures: Pictures | None = None) -> Columns:
    expected = json_path.stat().st_size / _BYTES_PER_SECOND
    with waiting(f"{name}: reading the annotations", expected):
        return parse_coco(json_path, content_hash, pictures)
