"""What annotation tools export, made with the tools: run as a program where they are installed.

    python exporting.py FOLDER TOOL

writes FOLDER/TOOL... from the pictures and objects of `PICTURES`.
"""

from __future__ import annotations

import functools
import http.server
import json
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CLASSES = ("zebra", "apple tree", "mouse")
"""Not in the order of the alphabet."""

PICTURES: dict[str, tuple[tuple[int, int], list[tuple[str, tuple[int, int, int, int]]]]] = {
    "one": ((64, 48), [("zebra", (4, 6, 24, 16)), ("mouse", (30, 8, 60, 40))]),
    "two b": ((50, 80), [("apple tree", (0, 0, 50, 80))]),
    "three": ((33, 21), []),
    "four": ((40, 40), [("mouse", (8, 4, 16, 36)), ("zebra", (20, 20, 40, 40)), ("zebra", (2, 2, 6, 6))]),
}
"""Width and height of each, and its objects: class and x1, y1, x2, y2, pixels."""


def draw(folder: Path, suffix: str = ".png") -> dict[str, Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for number, (name, ((width, height), _)) in enumerate(PICTURES.items()):
        pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        paths[name] = folder / f"{name}{suffix}"
        Image.fromarray(pixels).save(paths[name])
    return paths


def with_supervision(root: Path) -> None:
    import supervision as sv

    paths = {str(path): name for name, path in draw(root / "drawn").items()}
    found = {}
    for path, name in paths.items():
        objects = PICTURES[name][1]
        boxes = np.array([box for _, box in objects], dtype=np.float32).reshape(-1, 4)
        ids = np.array([CLASSES.index(label) for label, _ in objects], dtype=int)
        found[path] = sv.Detections(xyxy=boxes, class_id=ids)
    data = sv.DetectionDataset(classes=list(CLASSES), images=list(paths), annotations=found)
    coco, yolo, voc = root / "coco", root / "yolo", root / "voc"
    data.as_coco(str(coco / "train"), str(coco / "train" / "_annotations.coco.json"))
    data.as_yolo(str(yolo / "train" / "images"), str(yolo / "train" / "labels"), str(yolo / "data.yaml"))
    data.as_pascal_voc(str(voc / "images"), str(voc / "annotations"))


def with_datumaro(root: Path) -> None:
    from datumaro.components.annotation import Bbox, Polygon
    from datumaro.components.dataset import Dataset
    from datumaro.components.dataset_base import DatasetItem
    from datumaro.components.media import Image as Media

    paths = draw(root / "drawn")
    items = []
    for name, (_, objects) in PICTURES.items():
        annotations: list[Any] = []
        for label, (x1, y1, x2, y2) in objects:
            if name == "one":
                corners = [x1, y1, x2, y1, x2, y2, x1, y2]
                annotations.append(Polygon(corners, label=CLASSES.index(label)))
            else:
                annotations.append(Bbox(x1, y1, x2 - x1, y2 - y1, label=CLASSES.index(label)))
        media = Media.from_file(path=str(paths[name]))
        subset = "val" if name == "four" else "train"
        items.append(DatasetItem(f"cam/{name}", subset=subset, media=media, annotations=annotations))
    data = Dataset.from_iterable(items, categories=list(CLASSES))
    data.export(str(root / "coco"), "coco_instances", save_media=True)
    boxes = data.transform("shapes_to_boxes")
    boxes.export(str(root / "voc"), "voc_detection", save_media=True)
    boxes.export(str(root / "yolo"), "yolo", save_media=True)


def with_label_studio(root: Path) -> None:
    from label_studio_sdk.converter import Converter

    paths = draw(root / "drawn")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(root / "drawn"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    labels = "".join(f'<Label value="{name}"/>' for name in CLASSES)
    config = (
        '<View><Image name="image" value="$image"/>'
        f'<RectangleLabels name="label" toName="image">{labels}</RectangleLabels></View>'
    )
    tasks = []
    for number, (name, ((width, height), objects)) in enumerate(PICTURES.items()):
        result = [
            {
                "id": f"r{k}",
                "type": "rectanglelabels",
                "from_name": "label",
                "to_name": "image",
                "original_width": width,
                "original_height": height,
                "image_rotation": 0,
                "value": {
                    "rotation": 0,
                    "x": box[0] / width * 100,
                    "y": box[1] / height * 100,
                    "width": (box[2] - box[0]) / width * 100,
                    "height": (box[3] - box[1]) / height * 100,
                    "rectanglelabels": [label],
                },
            }
            for k, (label, box) in enumerate(objects)
        ]
        url = f"http://127.0.0.1:{server.server_port}/{paths[name].name.replace(' ', '%20')}"
        tasks.append(
            {"id": number + 1, "data": {"image": url}, "annotations": [{"id": number, "result": result}]}
        )
    export = root / "tasks.json"
    export.write_text(json.dumps(tasks))
    converter = Converter(config=config, project_dir=str(root), download_resources=True)
    converter.convert_to_coco(str(export), str(root / "coco"), is_dir=False)
    converter.convert_to_yolo(str(export), str(root / "yolo"), is_dir=False)
    converter.convert_to_voc(str(export), str(root / "voc"), is_dir=False)
    server.shutdown()


def with_labelme(root: Path) -> None:
    """labelme's own files, a JSON a picture, and what labelme2coco makes of them."""
    import labelme2coco

    folder = root / "labelled"
    for name, path in draw(folder).items():
        (width, height), objects = PICTURES[name]
        shapes = [
            {"label": label, "points": [box[:2], box[2:]], "shape_type": "rectangle", "flags": {}}
            for label, box in objects
        ]
        content = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": path.name}
        content |= {"imageData": None, "imageHeight": height, "imageWidth": width}
        (folder / f"{name}.json").write_text(json.dumps(content))
    labelme2coco.convert(str(folder), str(root / "runs"))


def with_sahi(root: Path) -> None:
    from sahi.utils.coco import Coco, CocoAnnotation, CocoCategory, CocoImage
    from sahi.utils.file import save_json

    coco = Coco()
    for number, name in enumerate(CLASSES):
        coco.add_category(CocoCategory(id=number, name=name))
    for name, path in draw(root / "images").items():
        (width, height), objects = PICTURES[name]
        image = CocoImage(file_name=path.name, height=height, width=width)
        for label, (x1, y1, x2, y2) in objects:
            image.add_annotation(
                CocoAnnotation(
                    bbox=[x1, y1, x2 - x1, y2 - y1], category_id=CLASSES.index(label), category_name=label
                )
            )
        coco.add_image(image)
    save_json(coco.json, str(root / "coco.json"))


TOOLS: dict[str, Callable[[Path], None]] = {
    "supervision": with_supervision,
    "datumaro": with_datumaro,
    "label_studio": with_label_studio,
    "labelme": with_labelme,
    "sahi": with_sahi,
}


if __name__ == "__main__":
    place = Path(sys.argv[1])
    shutil.rmtree(place / sys.argv[2], ignore_errors=True)
    (place / sys.argv[2]).mkdir(parents=True)
    TOOLS[sys.argv[2]](place / sys.argv[2])
