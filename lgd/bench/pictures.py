"""JPEGs that cost what COCO's cost to decode, where no photographs are at hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

_QUALITY = 92
_SHARPEST = 37.0
"""Contrast of the finest structure, such that a picture takes about 150 kB, as COCO's do."""


def write_pictures(root: Path, split: str, *, num_images: int, num_boxes: int = 7) -> Path:
    """Write pictures of 640 x 480 and 480 x 640 pixels with random boxes, laid out like COCO.

    Args:
        root: the folder, made if absent.
        split: images go to ROOT/SPLIT.
        num_images: how many, at least 1.
        num_boxes: of each.

    Returns:
        The annotation file.
    """
    generator = np.random.default_rng(0)
    (root / split).mkdir(parents=True, exist_ok=True)
    (root / "annotations").mkdir(exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(1, num_images + 1):
        height, width = (480, 640) if number % 4 else (640, 480)
        name = f"{number:012d}.jpg"
        _draw(generator, height, width).save(root / split / name, quality=_QUALITY)
        images.append({"id": number, "file_name": name, "height": height, "width": width})
        for x, y, w, h in generator.uniform(0.05, 0.5, (num_boxes, 4)) * (width, height, width, height):
            box = [round(float(value), 2) for value in (x, y, w, h)]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": 1 + len(annotations) % 80,
                    "bbox": box,
                    "area": round(box[2] * box[3], 2),
                    "iscrowd": 0,
                    "segmentation": [[box[0], box[1], box[0] + box[2], box[1], box[0], box[1] + box[3]]],
                }
            )
    categories = [{"id": k, "name": f"class {k}"} for k in range(1, 81)]
    path = root / "annotations" / f"instances_{split}.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def _draw(generator: np.random.Generator, height: int, width: int) -> Image.Image:
    """Structure of every size, the finer the fainter, as in photographs."""
    canvas = np.full((height, width, 3), 128.0)
    for cell in (160, 80, 40, 20, 10, 5, 2, 1):
        rows, columns = -(-height // cell), -(-width // cell)
        noise = generator.normal(0, _SHARPEST * min(1.0, 0.35 + cell / 20), (rows, columns, 3))
        noise = noise.mean(axis=2, keepdims=True) * 1.2 + noise * 0.3  # colours change less than brightness
        channels = [Image.fromarray(noise[..., c].astype(np.float32)) for c in range(3)]
        layers = [
            np.asarray(channel.resize((width, height), Image.Resampling.BILINEAR)) for channel in channels
        ]
        canvas += np.stack(layers, axis=-1) * (1.0 if cell > 2 else 0.6)
    return Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))
