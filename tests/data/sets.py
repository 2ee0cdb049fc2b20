"""Small COCO-style sets for the tests."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lgd.data.catalog import open_dataset
from lgd.data.coco import load_coco
from lgd.data.concatenation import concatenate
from lgd.data.index import AnnotationIndex

CATEGORIES = ({"id": 3, "name": "cat"}, {"id": 1, "name": "dog"}, {"id": 7, "name": "cow"})


def image_record(number: int, width: int = 64, height: int = 48) -> dict[str, Any]:
    return {"id": number, "file_name": f"{number:03d}.png", "width": width, "height": height}


def annotation(
    number: int, image: int, bbox: Sequence[float] = (4, 6, 20, 10), category: int = 3, **other: Any
) -> dict[str, Any]:
    return {"id": number, "image_id": image, "category_id": category, "bbox": list(bbox)} | other


def write_coco(
    root: Path,
    images: Sequence[Mapping[str, Any]],
    annotations: Sequence[Mapping[str, Any]] | None = (),
    *,
    split: str = "train",
    categories: Sequence[Mapping[str, Any]] = CATEGORIES,
    with_files: bool = True,
) -> Path:
    """Write the set, with noise for pictures; return the annotation file."""
    document: dict[str, Any] = {"images": images, "categories": categories}
    if annotations is not None:
        document["annotations"] = annotations
    path = root / "annotations" / f"instances_{split}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))
    (root / split).mkdir(exist_ok=True)
    for record in images if with_files else ():
        generator = np.random.default_rng(record["id"])
        pixels = generator.integers(0, 256, (record["height"], record["width"], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / split / record["file_name"])
    return path


def open_coco(path: Path, split: str = "train") -> AnnotationIndex:
    return load_coco(path, path.parents[1] / split, name="a set")


def open_joined(specs: Sequence[str], root: Path) -> AnnotationIndex:
    """Data sets as one."""
    return concatenate([open_dataset(spec, root) for spec in specs])
