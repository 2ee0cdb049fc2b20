"""Time scoring detections: ours against pycocotools and, where it is installed, faster-coco-eval, in one run.

    python benchmarks/evaluate.py --images 200          # a small one
    python benchmarks/evaluate.py                        # 5,000 images x 100 detections
    python benchmarks/evaluate.py --iou-types bbox,segm --rounds 3

Annotations and detections are made: of each image's detections one for each object, off by some pixels, the
others anywhere. Each scorer starts in a process of its own with the detections in memory, reads the
annotation file and ends with the AP, which must be the same; rounds take turns, figures are medians. The
detections are a list of dictionaries, which is what the others take, or as our evaluation collects them,
a few columns.

The second table is of scoring beside the training: for how long handing the detections over holds the
trainer, when the scores are back and the predictions' file is written, and the peak of both processes'
memory.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import hotcoco
import numpy as np
import report

from lgd.bench.machine import read_status, reset_peak_resident
from lgd.data.cache import cached_columns
from lgd.data.coco_json import parse_coco
from lgd.data.index import AnnotationIndex
from lgd.evaluation.coco import evaluate_coco
from lgd.evaluation.ground_truth import ground_truth_of, numbered
from lgd.evaluation.predictions import Predictions
from lgd.evaluation.score import without_collections
from lgd.run.scoring import ScoringJob, ScoringProcess

NUM_CLASSES = 80
OBJECTS = 7
HEIGHT, WIDTH = 480, 640
COLUMNS = ("shapes", "scorer", "s", "times pycocotools", "peak MiB", "AP")
COLUMNS_BESIDE = (
    "shapes", "trainer held, s", "its peak MiB", "scores and file after, s", "the process's peak MiB", "AP"
)  # fmt: skip


def make_ground_truth(num_images: int) -> dict[str, Any]:
    """Images of OBJECTS objects each, with octagons for masks."""
    generator = np.random.default_rng(0)
    boxes = _draw_boxes(generator, num_images * OBJECTS)
    annotations = [
        {
            "id": k + 1,
            "image_id": k // OBJECTS + 1,
            "category_id": int(category),
            "bbox": box,
            "area": round(box[2] * box[3] * 0.83, 2),
            "iscrowd": 0,
            "segmentation": [octagon(box)],
        }
        for k, (box, category) in enumerate(
            zip(boxes, generator.integers(1, NUM_CLASSES + 1, len(boxes)), strict=True)
        )
    ]
    images = [
        {"id": k + 1, "width": WIDTH, "height": HEIGHT, "file_name": f"{k + 1}.jpg"}
        for k in range(num_images)
    ]
    categories = [{"id": k, "name": f"class {k}"} for k in range(1, NUM_CLASSES + 1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def make_detections(
    ground_truth: Mapping[str, Any], per_image: int, with_masks: bool
) -> list[dict[str, Any]]:
    """COCO results: `per_image` detections of every image."""
    generator = np.random.default_rng(1)
    results = []
    for start in range(0, len(ground_truth["annotations"]), OBJECTS):
        objects = ground_truth["annotations"][start : start + OBJECTS][:per_image]
        near = [
            np.round(np.array(each["bbox"]) + generator.normal(0, 4, 4), 2).clip(1, 470).tolist()
            for each in objects
        ]
        labels = [each["category_id"] for each in objects]
        others = per_image - len(objects)
        boxes = near + _draw_boxes(generator, others)
        labels += generator.integers(1, NUM_CLASSES + 1, others).tolist()
        scores = np.concatenate([generator.uniform(0.2, 1, len(objects)), generator.uniform(0, 0.6, others)])
        for box, label, score in zip(boxes, labels, scores.round(5).tolist(), strict=True):
            result = {"image_id": objects[0]["image_id"], "category_id": label, "bbox": box, "score": score}
            if with_masks:
                (mask,) = hotcoco.mask.frPyObjects([octagon(box)], HEIGHT, WIDTH)
                result["segmentation"] = _as_text(mask)
            results.append(result)
    return results


def octagon(box: list[float]) -> list[float]:
    """The polygon of eight corners that touches the sides of a box x, y, width, height."""
    x, y, w, h = box
    corners = [(0.3, 0), (0.7, 0), (1, 0.3), (1, 0.7), (0.7, 1), (0.3, 1), (0, 0.7), (0, 0.3)]
    return [round(value, 2) for u, v in corners for value in (x + u * w, y + v * h)]


def _as_text(mask: dict[str, Any]) -> dict[str, Any]:
    counts = mask["counts"]
    return {"size": list(mask["size"]), "counts": counts.decode() if isinstance(counts, bytes) else counts}


def _draw_boxes(generator: np.random.Generator, count: int) -> list[list[float]]:
    corners = generator.uniform(1, 320, (count, 2))
    boxes: list[list[float]] = (
        np.concatenate([corners, generator.uniform(10, 150, (count, 2))], axis=1).round(2).tolist()
    )
    return boxes


def open_index(gt_json: Path) -> AnnotationIndex:
    """As a training has it open, which has been indexed before."""
    path = cached_columns(gt_json, lambda content_hash: parse_coco(gt_json, content_hash))
    return AnnotationIndex(path, name="made", json_path=gt_json, image_dir=gt_json.parent)


def score_ours(gt_json: Path, found: Predictions, iou_type: Any) -> float:
    """As the evaluation of a training does it."""
    with without_collections():
        index = open_index(gt_json)
        metrics = evaluate_coco(
            ground_truth_of(index, with_masks=iou_type == "segm"),
            numbered(index, found),
            iou_type=iou_type,
            name=str(gt_json),
        )
    assert metrics is not None
    assert metrics["AP"] is not None
    return metrics["AP"]


def score_ours_from_list(gt_json: Path, results: list[dict[str, Any]], iou_type: Any) -> float:
    """The same from a list of dictionaries."""
    with without_collections():
        found = Predictions.from_results(results)
    return score_ours(gt_json, found, iou_type)


def score_pycocotools(gt_json: Path, results: list[dict[str, Any]], iou_type: str) -> float:
    """As its own example does it."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    return _score_alike(COCO, COCOeval, gt_json, results, iou_type)


def score_faster(gt_json: Path, results: list[dict[str, Any]], iou_type: str) -> float:
    """The same calls."""
    from faster_coco_eval import COCO, COCOeval_faster

    return _score_alike(COCO, COCOeval_faster, gt_json, results, iou_type)


def _score_alike(
    coco: Any, evaluator: Any, gt_json: Path, results: list[dict[str, Any]], iou_type: str
) -> float:
    # With a box beside the mask it would take the area from the box.
    shape = {"bbox": "bbox", "segm": "segmentation"}[iou_type]
    kept = [{key: each[key] for key in ("image_id", "category_id", "score", shape)} for each in results]
    with contextlib.redirect_stdout(io.StringIO()):
        gt = coco(str(gt_json))
        evaluation = evaluator(gt, gt.loadRes(kept), iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return 100 * float(evaluation.stats[0])


SCORERS: Mapping[str, tuple[str, Callable[[Path, Any, Any], float]]] = {
    "pycocotools": ("pycocotools", score_pycocotools),
    "faster-coco-eval": ("faster_coco_eval", score_faster),
    "ours (hotcoco), of a list": ("hotcoco", score_ours_from_list),
    "ours (hotcoco), of columns": ("hotcoco", score_ours),
}
"""The module that each needs, and its function."""


def score_here(name: str, gt_json: Path, results_json: Path, iou_type: str) -> dict[str, Any]:
    """Score in this process, which does nothing else: seconds, peak bytes beyond the detections, AP."""
    results = json.loads(results_json.read_text())
    if SCORERS[name][1] is score_ours:
        results = Predictions.from_results(results)
    importlib.import_module(SCORERS[name][0])
    can_weigh = reset_peak_resident()
    before = read_status("VmRSS") if can_weigh else 0
    begin = time.perf_counter()
    ap = SCORERS[name][1](gt_json, results, iou_type)
    seconds = time.perf_counter() - begin
    return {"seconds": seconds, "peak": read_status("VmHWM") - before if can_weigh else None, "AP": ap}


def score_apart(name: str, gt_json: Path, results_json: Path, iou_type: str) -> dict[str, Any]:
    """Do the same in a process of its own."""
    command = [sys.executable, __file__, "--score", name, str(gt_json), str(results_json), iou_type]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(folder: Path, iou_type: str, num_images: int, per_image: int, rounds: int) -> list[list[Any]]:
    """The table's rows of boxes or masks."""
    gt_json, results_json = folder / "instances.json", folder / f"{iou_type}.json"
    ground_truth = make_ground_truth(num_images)
    gt_json.write_text(json.dumps(ground_truth))
    open_index(gt_json)
    results_json.write_text(json.dumps(make_detections(ground_truth, per_image, iou_type == "segm")))
    names = [name for name, (module, _) in SCORERS.items() if importlib.util.find_spec(module)]
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            found[name].append(score_apart(name, gt_json, results_json, iou_type))
    seconds = {
        name: statistics.median(each["seconds"] for each in rounds_) for name, rounds_ in found.items()
    }
    peer = seconds.get("pycocotools")
    return [
        [
            iou_type,
            name,
            seconds[name],
            peer and peer / seconds[name],
            report.mebibytes(found[name][0]["peak"]),
            f"{found[name][0]['AP']:.10f}",
        ]
        for name in names
    ]


def score_beside(gt_json: Path, results_json: Path, iou_type: str) -> dict[str, Any]:
    """Hand the detections to the process that scores, as a training does, from this one, and wait."""
    index = open_index(gt_json)
    with without_collections():
        found = Predictions.from_results(json.loads(results_json.read_text()))
    paths = {"student": gt_json.with_name("predictions.json")}
    job = ScoringJob(index, {"student": found}, iou_type == "segm", "hotcoco", paths)
    process = ScoringProcess()
    process.submit([])
    process.result()  # it has started
    can_weigh = reset_peak_resident()
    before = read_status("VmRSS") if can_weigh else 0
    begin = time.perf_counter()
    process.submit([job])
    held = time.perf_counter() - begin
    peak = read_status("VmHWM") - before if can_weigh else None
    (scored,) = process.result()
    seconds = time.perf_counter() - begin
    numbers = scored.scores["student"][iou_type]
    assert numbers is not None
    peak_beside = read_status("VmHWM", process.process_id) if can_weigh else None
    process.close()
    return {"held": held, "peak": peak, "seconds": seconds, "beside": peak_beside, "AP": numbers["AP"]}


def weigh_beside(folder: Path, iou_type: str) -> list[Any]:
    """The second table's row of boxes or masks."""
    arguments = [str(folder / "instances.json"), str(folder / f"{iou_type}.json"), iou_type]
    command = [sys.executable, __file__, "--beside", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    return [
        iou_type,
        found["held"],
        report.mebibytes(found["peak"]),
        found["seconds"],
        report.mebibytes(found["beside"]),
        f"{found['AP']:.10f}",
    ]


def main() -> None:
    """Print the table."""
    parser = report.make_parser(__doc__)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--detections", type=int, default=100, help="of an image")
    parser.add_argument("--iou-types", default="bbox,segm")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument(
        "--score", nargs=4, metavar=("SCORER", "GT", "RESULTS", "TYPE"), help="what a process does"
    )
    parser.add_argument("--beside", nargs=3, metavar=("GT", "RESULTS", "TYPE"), help="likewise")
    arguments = parser.parse_args()
    if arguments.beside:
        gt_json, results_json, iou_type = arguments.beside
        print(json.dumps(score_beside(Path(gt_json), Path(results_json), iou_type)))
        return
    if arguments.score:
        name, gt_json, results_json, iou_type = arguments.score
        print(json.dumps(score_here(name, Path(gt_json), Path(results_json), iou_type)))
        return
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            row
            for iou_type in arguments.iou_types.split(",")
            for row in compare(
                Path(folder), iou_type, arguments.images, arguments.detections, arguments.rounds
            )
        ]
        beside = [weigh_beside(Path(folder), iou_type) for iou_type in arguments.iou_types.split(",")]
    versions = {
        name: importlib.metadata.version(name)
        for name in ("hotcoco", "pycocotools", "faster-coco-eval")
        if importlib.util.find_spec(name.replace("-", "_"))
    }
    report.publish(
        f"Evaluation: {arguments.images} images x {arguments.detections} detections, {OBJECTS} objects each",
        report.describe_machine(**versions),
        COLUMNS,
        rows,
        arguments.json,
        beside=[dict(zip(COLUMNS_BESIDE, row, strict=True)) for row in beside],
    )
    print("\n" + report.markdown_table(COLUMNS_BESIDE, beside))


if __name__ == "__main__":
    main()
