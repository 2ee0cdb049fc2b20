"""Some images of a data set, written as a COCO-style JSON that `load_coco` reads back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from lgd.data.index import AnnotationIndex, Integers, RunLengths
from lgd.files import write_text_atomically


def write_coco(index: AnnotationIndex, images: Integers, path: Path) -> None:
    """Write the images at the places `images` of `index`, with all of their annotations and all classes.

    Names of pictures stay as they are: below the image folder of the set. VOC's mark of difficult objects has
    no place in the format and is lost.

    Args:
        index: a set of one source.
        images: (n,) places in [0, I).
        path: the JSON to make; its folder is made where it is missing.

    Raises:
        OSError: it cannot be written.
    """
    columns = index.columns
    offsets = columns["annotation_offsets"]
    rows = [(int(i), row) for i in images for row in range(int(offsets[i]), int(offsets[i + 1]))]
    document = {
        "images": [
            {"id": record.id, "file_name": record.file_name, "height": record.height, "width": record.width}
            for record in map(index.image, map(int, images))
        ],
        "annotations": [_annotation(index, i, row) for i, row in rows],
        "categories": [
            {"id": category_id, "name": name}
            for category_id, name in zip(index.category_ids, index.class_names, strict=True)
        ],
    }
    write_text_atomically(path, json.dumps(document))


def _annotation(index: AnnotationIndex, i: int, row: int) -> dict[str, Any]:
    columns = index.columns
    mask = index.mask(i, row)
    record = {
        "id": int(columns["annotation_ids"][row]),
        "image_id": int(index.image_ids[i]),
        "category_id": index.category_ids[int(columns["labels"][row])],
        "bbox": columns["xywh"][row].tolist(),
        "area": float(columns["areas"][row]),
        "iscrowd": int(columns["crowd"][row]),
    }
    if isinstance(mask, RunLengths):
        size = [mask.height, mask.width]
        return record | {"segmentation": {"size": size, "counts": mask.counts.tolist()}}
    return record if mask is None else record | {"segmentation": [np.asarray(each).tolist() for each in mask]}
