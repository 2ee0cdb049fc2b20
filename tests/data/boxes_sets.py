"""Small CrowdHuman and VOC sets for the tests, in the public sets' files and folders."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def write_picture(path: Path, width: int = 64, height: int = 48) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def person(box: Sequence[float], tag: str = "person", **extra: Any) -> dict[str, Any]:
    """A box as CrowdHuman writes it: whole, visible and head's, each x, y, width, height."""
    return {
        "fbox": list(box),
        "tag": tag,
        "hbox": [1, 2, 3, 4],
        "extra": {"box_id": 0, "occ": 0} | extra,
        "vbox": list(box),
        "head_attr": {"ignore": 0, "occ": 0, "unsure": 0},
    }


def write_crowdhuman(
    root: Path,
    images: Mapping[str, Sequence[Mapping[str, Any]] | None],
    *,
    split: str = "val",
    size: tuple[int, int] = (64, 48),
) -> str:
    """Write the set; return what opens it."""
    lines = [
        {"ID": name} if boxes is None else {"ID": name, "gtboxes": list(boxes)}
        for name, boxes in images.items()
    ]
    root.mkdir(parents=True, exist_ok=True)
    (root / f"annotation_{split}.odgt").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name in images:
        write_picture(root / "Images" / f"{name}.jpg", *size)
    return f"crowdhuman:{root}:{split}"


def voc_object(name: str, box: Sequence[float], difficult: int | None = 0) -> str:
    corners = "".join(
        f"<{key}>{value}</{key}>" for key, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    )
    flag = "" if difficult is None else f"<difficult>{difficult}</difficult>"
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
    return f"<object><name>{name}</name><pose>Left</pose>{flag}<bndbox>{corners}</bndbox>{part}</object>"


def voc_xml(image_id: str, objects: Sequence[str], size: tuple[int, int] = (64, 48)) -> str:
    width, height = size
    return (
        f"<annotation><folder>VOC2007</folder><filename>{image_id}.jpg</filename>"
        f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
        f"<segmented>0</segmented>{''.join(objects)}</annotation>"
    )


def write_voc(
    root: Path, images: Mapping[str, Sequence[str]], *, split: str = "trainval", suffix: str = ".jpg"
) -> str:
    """Write the set; return what opens it."""
    for folder in ("ImageSets/Main", "Annotations"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{name}\n" for name in images))
    for name, objects in images.items():
        (root / "Annotations" / f"{name}.xml").write_text(voc_xml(name, objects))
        write_picture(root / "JPEGImages" / f"{name}{suffix}")
    return f"voc:{root}:{split}"
