"""Time evaluating pictures of 1,000 objects against pictures of 100: network, decoding, scoring.

    python benchmarks/crowded.py
    python benchmarks/crowded.py --size 320 --objects 100,1000,3000

A RetinaNet R-50 runs on made pictures; in place of its outputs, whose time counts all the same, the anchors
at so many places and at their neighbours see an object. DETECTIONS_PER_IMAGE is the number of objects, and at
least 100. Scoring has as many objects for the truth, and detections that are off by some pixels. One core,
CPU time, medians of rounds that take turns.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import report
import torch
from torch import Tensor

from lgd.bench.machine import take_turns
from lgd.bench.step import make_batch
from lgd.build import build_model
from lgd.config.load import load_config
from lgd.data.cache import cached_columns
from lgd.data.coco_json import parse_coco
from lgd.data.index import AnnotationIndex
from lgd.detectors.retinanet import RetinaNet
from lgd.evaluation.coco import evaluate_coco
from lgd.evaluation.ground_truth import ground_truth_of, numbered
from lgd.evaluation.predictions import Predictions
from lgd.structures import Batch, Features

RECIPE = report.ROOT / "configs/retinanet/r50_2x_ms.yaml"
CLASSES, SIDE = 3, 16
COLUMNS = ("objects", "detections", "network, ms", "decoding, ms", "scoring, ms", "all", "times the first")


def make_detector(objects: int) -> RetinaNet:
    """One that keeps so many detections of a picture."""
    cfg = load_config(
        RECIPE, ["NUM_CLASSES", str(CLASSES), "TEST.DETECTIONS_PER_IMAGE", str(max(100, objects))]
    )
    torch.manual_seed(0)
    student = build_model(cfg).eval().student
    assert isinstance(student, RetinaNet)
    return student


def make_outputs(
    shapes: tuple[list[Tensor], list[Tensor]], objects: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Logits and deltas of the shapes given, where objects are seen on the finest level."""
    logits, deltas = ([torch.zeros_like(x) for x in parts] for parts in shapes)
    for each in logits:
        each.fill_(-10)
    generator = torch.Generator().manual_seed(0)
    finest = logits[0]
    places = torch.randperm(finest.shape[1], generator=generator)[:objects]
    neighbours = (places[:, None] + torch.arange(-9, 10)).clamp(0, finest.shape[1] - 1).flatten()
    labels = torch.randint(CLASSES, (objects,), generator=generator).repeat_interleave(19)
    finest[:, neighbours, labels] = torch.randn(len(labels), generator=generator)
    return logits, deltas


@torch.no_grad()
def make_steps(size: int, objects: int, folder: Path) -> dict[str, Callable[[], object]]:
    """What a picture costs, part by part."""
    batch = make_batch(1, size, size, num_boxes=1, num_classes=CLASSES, device=torch.device("cpu"))
    detector = make_detector(objects)
    predict = detector._predict
    made = make_outputs(predict(detector.extract_features(batch)), objects)

    def run_network(batch: Batch) -> Features:
        features: Features = detector.extract_features(batch)
        predict(features)
        return features

    features = run_network(batch)
    detector._predict = lambda features: made  # type: ignore[method-assign]
    return {
        "network": torch.no_grad()(partial(run_network, batch)),
        "decoding": torch.no_grad()(partial(detector.detect, features, batch)),
        "scoring": make_scoring(size, objects, folder),
    }


def make_scoring(size: int, objects: int, folder: Path) -> Callable[[], object]:
    """Score one picture."""
    generator = np.random.default_rng(0)
    boxes = np.concatenate(
        [generator.uniform(0, size - SIDE, (objects, 2)), np.full((objects, 2), SIDE)], axis=1
    )
    labels = generator.integers(1, CLASSES + 1, objects)
    content = {
        "images": [{"id": 1, "width": size, "height": size, "file_name": "1.jpg"}],
        "categories": [{"id": k, "name": f"class {k}"} for k in range(1, CLASSES + 1)],
        "annotations": [
            {
                "id": k + 1,
                "image_id": 1,
                "category_id": int(label),
                "bbox": box,
                "area": SIDE**2,
                "iscrowd": 0,
            }
            for k, (box, label) in enumerate(zip(boxes.tolist(), labels, strict=True))
        ],
    }
    path = folder / f"{objects}.json"
    path.write_text(json.dumps(content))
    index = AnnotationIndex(
        cached_columns(path, lambda content_hash: parse_coco(path, content_hash)),
        name="made",
        json_path=path,
        image_dir=folder,
    )
    near = boxes + generator.normal(0, 2, boxes.shape) * [1, 1, 0, 0]
    found = Predictions(np.ones(objects, dtype=np.int64), labels, near, generator.uniform(0, 1, objects))

    def score() -> object:
        truth = ground_truth_of(index, with_masks=False)
        return evaluate_coco(truth, numbered(index, found), cap=max(100, objects), name="made")

    return score


def time_process(call: Callable[[], object]) -> float:
    """Seconds of this process that a call takes."""
    begin = time.process_time()
    call()
    return time.process_time() - begin


def measure(size: int, numbers: list[int], rounds: int) -> list[list[Any]]:
    """Rows of the table."""
    with tempfile.TemporaryDirectory() as name:
        steps = {objects: make_steps(size, objects, Path(name)) for objects in numbers}
        detections = {objects: len(each["decoding"]()[0].scores) for objects, each in steps.items()}  # type: ignore[index]
        runs = {
            f"{objects} {part}": partial(time_process, call)
            for objects, each in steps.items()
            for part, call in each.items()
        }
        seconds = take_turns(runs, num_turns=rounds)
    parts = {
        objects: [1000 * seconds[f"{objects} {part}"] for part in each] for objects, each in steps.items()
    }
    first = sum(parts[numbers[0]])
    return [
        [objects, detections[objects], *each, sum(each), sum(each) / first] for objects, each in parts.items()
    ]


def main() -> None:
    """Print the table."""
    parser = report.make_parser(__doc__)
    parser.add_argument("--size", type=int, default=640, help="side of the pictures")
    parser.add_argument("--objects", type=report.numbers, default=[100, 1000], help="commas between")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
    torch.set_num_threads(1)
    rows = measure(arguments.size, arguments.objects, arguments.rounds)
    title = f"Evaluating a crowded picture, RetinaNet R-50, {arguments.size} pixels, one core"
    report.publish(title, report.describe_machine(), COLUMNS, rows, arguments.json)


if __name__ == "__main__":
    main()
