"""Annotation files of a given size, for the tests of memory."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

_POLYGON = [round(100 + 60 * float(np.cos(k / 4)) + (k % 2) * 40, 2) for k in range(50)]


def write_large_coco(
    root: Path, split: str, *, num_images: int, num_boxes: int, num_classes: int = 80
) -> None:
    """Write a COCO-style JSON with polygons of 25 points, line by line, and its folder without images."""
    (root / "annotations").mkdir(parents=True)
    (root / split).mkdir()
    generator = np.random.default_rng(0)
    boxes = np.round(generator.uniform(1, 200, (num_boxes, 4)), 2).tolist()
    image_of = generator.integers(1, num_images + 1, num_boxes).tolist()
    category_of = generator.integers(1, num_classes + 1, num_boxes).tolist()
    polygon = json.dumps([_POLYGON])
    with (root / "annotations" / f"instances_{split}.json").open("w") as file:
        categories = [{"id": k, "name": f"class {k}"} for k in range(1, num_classes + 1)]
        file.write('{"categories": ' + json.dumps(categories) + ', "images": [')
        file.write(",\n".join(_image(number, num_images) for number in range(1, num_images + 1)))
        file.write('], "annotations": [')
        file.write(
            ",\n".join(
                f'{{"id": {k + 1}, "image_id": {image_of[k]}, "category_id": {category_of[k]}, '
                f'"bbox": {boxes[k]}, "area": 5000.5, "iscrowd": 0, "segmentation": {polygon}}}'
                for k in range(num_boxes)
            )
        )
        file.write("]}")


def _image(number: int, num_images: int) -> str:
    height, width = (480, 640) if number % 4 else (640, 480)
    return f'{{"id": {number}, "file_name": "{number:012d}.jpg", "height": {height}, "width": {width}}}'
