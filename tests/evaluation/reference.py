"""pycocotools on an annotation file as it lies there, which our numbers have to be those of."""

from __future__ import annotations

import contextlib
import copy
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lgd.data.cache import cached_columns
from lgd.data.coco_json import parse_coco
from lgd.data.index import AnnotationIndex


def open_index(path: Path) -> AnnotationIndex:
    """Open an annotation file without looking for its images."""
    columns = cached_columns(path, lambda content_hash: parse_coco(path, content_hash))
    return AnnotationIndex(columns, name="a set", json_path=path, image_dir=path.parent)


def reference_stats(path: Path, results: Sequence[Mapping[str, Any]], iou_type: str) -> list[float]:
    """The twelve numbers that `summarize` prints; objects are numbered from 1, as 0 counts as not found."""
    evaluator = _run_reference(path, results, iou_type, [1, 10, 100])
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator.summarize()
    stats: list[float] = evaluator.stats.tolist()
    return stats


def reference_stats_at(
    path: Path, results: Sequence[Mapping[str, Any]], iou_type: str, cap: int
) -> dict[str, float]:
    """AP, AP50, AP75 and AR in percent where `cap` detections of a class and image count and no others."""
    tables = _run_reference(path, results, iou_type, [cap]).eval
    precision, recall = tables["precision"][..., 0, 0], tables["recall"][..., 0, 0]
    values = {"AP": precision, "AP50": precision[0], "AP75": precision[5], "AR": recall}
    return {f"{name}@{cap}": 100 * float(np.mean(table[table > -1])) for name, table in values.items()}


def _run_reference(path: Path, results: Sequence[Mapping[str, Any]], iou_type: str, caps: list[int]) -> Any:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    content = json.loads(path.read_text())
    for number, annotation in enumerate(content["annotations"], start=1):
        annotation["id"] = number
        annotation.setdefault("iscrowd", 0)
        annotation.setdefault("area", annotation["bbox"][2] * annotation["bbox"][3])
    # With a box beside the mask it would take the area from the box.
    shape = {"bbox": "bbox", "segm": "segmentation"}[iou_type]
    kept = [{key: each[key] for key in ("image_id", "category_id", "score", shape)} for each in results]
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth = COCO()
        ground_truth.dataset = content
        ground_truth.createIndex()
        evaluator = COCOeval(ground_truth, ground_truth.loadRes(copy.deepcopy(kept)), iou_type)
        evaluator.params.maxDets = caps
        evaluator.evaluate()
        evaluator.accumulate()
    return evaluator
