"""Time indexing annotations and opening them again, and weigh what they cost the loading processes.

    python benchmarks/index.py --images 2000          # a small one
    python benchmarks/index.py --workers 32            # COCO's: 118,000 images, 860,000 polygons
    python benchmarks/index.py --objects365            # 2 million images, 30 million boxes

A JSON is made in a temporary folder (--folder to choose its disk). Of Objects365's size the columns are made
at once, since that JSON would take longer to make than to read. Each worker then reads every
annotation of the set; the memory is what they have more than before they opened it.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import re
import tempfile
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import report

from lgd.bench.machine import read_status, reset_peak_resident
from lgd.data.annotations import annotation_columns, image_columns
from lgd.data.cache import SETTLED, Columns, cached_columns
from lgd.data.coco_json import parse_coco
from lgd.data.index import AnnotationIndex
from lgd.data.presence import check_images_present
from lgd.data.segmentations import segmentation_columns

COCO_IMAGES, COCO_BOXES = 118_000, 860_000
OBJECTS365_IMAGES, OBJECTS365_BOXES = 2_000_000, 30_000_000
NUM_CLASSES = 80
_PATIENCE = 600.0
"""Seconds that the workers wait for each other: one that failed must not keep the rest."""

SMAPS = Path("/proc/self/smaps_rollup")


def write_json(path: Path, num_images: int, num_boxes: int) -> None:
    """Write a COCO-style JSON line by line; every object has a polygon of 25 points."""
    generator = np.random.default_rng(0)
    image_of = np.sort(generator.integers(1, num_images + 1, num_boxes)).tolist()
    corners = generator.uniform(1, 300, (num_boxes, 2)).round(2)
    sides = generator.uniform(10, 170, (num_boxes, 2)).round(2)
    angles = np.linspace(0, 2 * np.pi, 25, endpoint=False)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1) / 2 + 0.5
    with path.open("w") as file:
        categories = [{"id": k, "name": f"class {k}"} for k in range(1, NUM_CLASSES + 1)]
        file.write('{"categories": ' + json.dumps(categories) + ', "images": [')
        file.write(",\n".join(_image(number) for number in range(1, num_images + 1)))
        file.write('], "annotations": [')
        for k in range(num_boxes):
            points = (corners[k] + circle * sides[k]).round(2).reshape(-1).tolist()
            x, y, w, h = *corners[k].tolist(), *sides[k].tolist()
            file.write(
                f'{"," if k else ""}\n{{"id": {k + 1}, "image_id": {image_of[k]}, "category_id": '
                f'{k % NUM_CLASSES + 1}, "bbox": [{x}, {y}, {w}, {h}], "area": {w * h:.2f}, "iscrowd": 0, '
                f'"segmentation": [{points}]}}'
            )
        file.write("]}")


def _image(number: int) -> str:
    height, width = (480, 640) if number % 4 else (640, 480)
    return f'{{"id": {number}, "file_name": "{number:012d}.jpg", "height": {height}, "width": {width}}}'


def make_boxes(path: Path, content_hash: str, num_images: int, num_boxes: int) -> Columns:
    """Columns of boxes without masks, as indexing would leave them."""
    generator = np.random.default_rng(0)
    image_of = np.sort(generator.integers(0, num_images, num_boxes))
    corners, sides = generator.uniform(1, 300, (num_boxes, 2)), generator.uniform(10, 170, (num_boxes, 2))
    flags = np.zeros(num_boxes, dtype=np.bool_)
    names = [f"{number:012d}.jpg" for number in range(1, num_images + 1)]
    sizes = np.full(num_images, 480), np.full(num_images, 640)
    masks, _ = segmentation_columns([], np.zeros(0, np.int64), np.zeros(0, np.int64), path)
    masks |= {key: np.zeros(num_boxes + 1, np.int64) for key in ("polygon_offsets", "run_offsets")}
    annotations = annotation_columns(
        num_images,
        image_of,
        xywh=np.concatenate([corners, sides], axis=1),
        labels=np.arange(num_boxes) % NUM_CLASSES,
        ids=np.arange(1, num_boxes + 1),
        areas=sides.prod(axis=1),
        crowd=flags,
        difficult=flags,
        usable=~flags,
    )
    metadata = {
        "kind": "coco",
        "content_hash": content_hash,
        "class_names": [f"class {k}" for k in range(NUM_CLASSES)],
        "category_ids": list(range(1, NUM_CLASSES + 1)),
        "has_annotations": True,
        "remarks": [[]],
    }
    return image_columns(np.arange(1, num_images + 1), names, *sizes) | annotations | masks, metadata


def private_and_proportional() -> tuple[int, int]:
    """This process's bytes that are its own, and those with its share of what it shares."""
    text = SMAPS.read_text()
    private = sum(int(n) for n in re.findall(r"^Private_\w+:\s+(\d+) kB", text, re.MULTILINE))
    proportional = re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)
    assert proportional
    return 1024 * private, 1024 * int(proportional[1])


def read_all(reopen: Any, barrier: Barrier, answers: Any) -> None:
    """A worker: open the index as one that is started afresh does, and read everything."""
    gc.collect()  # writes to every object that was inherited, and so copies the interpreter's own memory
    gc.disable()
    barrier.wait()
    before = private_and_proportional()
    barrier.wait()
    open_, arguments = reopen
    index = open_(*arguments)
    for column in index.columns.values():
        for start in range(0, len(column), 2**20):
            column[start : start + 2**20].max(initial=0)
    for i in range(0, len(index), max(1, len(index) // 1000)):
        index.boxes(i), index.labels(i), index.segmentation(i)
    barrier.wait()
    after = private_and_proportional()
    barrier.wait()
    answers.put((after[0] - before[0], after[1] - before[1]))


def weigh_workers(index: AnnotationIndex, num_workers: int) -> list[tuple[int, int]]:
    """What each of several workers has more, private and proportional, having read the whole index."""
    context = multiprocessing.get_context("fork")  # as a DataLoader starts its workers
    barrier, answers = context.Barrier(num_workers, timeout=_PATIENCE), context.Queue()
    workers = [
        context.Process(target=read_all, args=(index.__reduce__(), barrier, answers))
        for _ in range(num_workers)
    ]
    for worker in workers:
        worker.start()
    found = [answers.get(timeout=_PATIENCE) for _ in workers]
    for worker in workers:
        worker.join()
    return found


def open_columns(json_path: Path) -> AnnotationIndex:
    """Find the columns again, check and map them."""
    path = cached_columns(json_path, _no_more)
    return AnnotationIndex(path, name="made", json_path=json_path, image_dir=json_path.parent / "images")


def _no_more(content_hash: str) -> Columns:
    raise AssertionError(content_hash)


def open_index(json_path: Path) -> AnnotationIndex:
    """Open a set as training does: look whether every image is there, too."""
    index = open_columns(json_path)
    check_images_present(index)
    return index


def main() -> None:
    """Print the table."""
    parser = report.make_parser(__doc__)
    parser.add_argument("--images", type=int, default=COCO_IMAGES, help="with as many boxes each as COCO has")
    parser.add_argument("--workers", type=int, default=4, help="loading processes, of all ranks of a node")
    parser.add_argument("--objects365", action="store_true", help="that size, from columns")
    parser.add_argument("--folder", type=Path, help="where to make the set")
    arguments = parser.parse_args()
    num_images = OBJECTS365_IMAGES if arguments.objects365 else arguments.images
    num_boxes = OBJECTS365_BOXES if arguments.objects365 else round(num_images * COCO_BOXES / COCO_IMAGES)
    rows: list[list[Any]] = [["images", num_images], ["boxes", num_boxes]]
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        (folder / "images").mkdir()
        for number in range(1, num_images + 1):
            (folder / "images" / f"{number:012d}.jpg").touch()
        json_path = folder / "made.json"
        if arguments.objects365:
            json_path.write_text("stands for the file")
            time.sleep(SETTLED / 1e9)
            cached_columns(json_path, lambda h: make_boxes(json_path, h, num_images, num_boxes))
        else:
            rows += index_first(json_path, num_images, num_boxes)
        begin = time.perf_counter()
        open_columns(json_path)
        rows.append(["opening again: the columns, checked, s", time.perf_counter() - begin])
        begin = time.perf_counter()
        index = open_index(json_path)
        rows.append(["opening again, and every image looked for, s", time.perf_counter() - begin])
        begin = time.perf_counter()
        open_index(json_path)
        rows.append(["... once more: the folder is known to be whole, s", time.perf_counter() - begin])
        json_path.touch()
        begin = time.perf_counter()
        open_index(json_path)
        rows.append(["... of a copy: the JSON is read and hashed, s", time.perf_counter() - begin])
        size = index.cache_path.stat().st_size
        rows.append(["the columns, MiB", report.mebibytes(size)])
        if SMAPS.exists():
            found = weigh_workers(index, arguments.workers)
            private, proportional = max(p for p, _ in found), sum(p for _, p in found)
            rows += [
                ["private memory of a worker, MiB, the most", report.mebibytes(private)],
                [
                    f"proportional memory of {arguments.workers} workers together, MiB",
                    report.mebibytes(proportional),
                ],
                ["... of the columns' size", proportional / size],
            ]
    report.publish(
        "Annotations: indexing and opening",
        report.describe_machine(),
        ["what", "figure"],
        rows,
        arguments.json,
    )


def index_first(json_path: Path, num_images: int, num_boxes: int) -> list[list[Any]]:
    """Make the JSON and index it; returns the table's rows."""
    write_json(json_path, num_images, num_boxes)
    time.sleep(SETTLED / 1e9)  # a file just written is not trusted to stay
    can_weigh = reset_peak_resident()
    before = read_status("VmRSS") if can_weigh else 0
    begin = time.perf_counter()
    cached_columns(json_path, lambda content_hash: parse_coco(json_path, content_hash))
    seconds = time.perf_counter() - begin
    peak = read_status("VmHWM") - before if can_weigh else None
    return [
        ["the JSON, MiB", report.mebibytes(json_path.stat().st_size)],
        ["indexing it the first time, s", seconds],
        ["... its peak memory, MiB", report.mebibytes(peak)],
    ]


if __name__ == "__main__":
    main()
