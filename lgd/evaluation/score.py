"""Detections held against a data set's ground truth, by the rules of its kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lgd.data.index import AnnotationIndex
from lgd.evaluation.coco import Backend, IouType, Metrics, evaluate_coco, read_ground_truth
from lgd.evaluation.crowdhuman import evaluate_crowdhuman
from lgd.evaluation.ground_truth import ground_truth_from_index
from lgd.evaluation.voc import evaluate_voc

_OWN_RULES: Mapping[str, Callable[[AnnotationIndex, Sequence[Mapping[str, Any]]], Metrics]] = {
    "voc": evaluate_voc,
    "crowdhuman": evaluate_crowdhuman,
}


def score(
    index: AnnotationIndex, results: Sequence[Mapping[str, Any]], *, with_masks: bool, backend: Backend
) -> dict[str, Metrics | None]:
    """Score the detections of one model on one data set.

    Args:
        index: the data set.
        results: detections of all its images, as from `to_coco_results`.
        with_masks: whether the detections have masks (there may be no detection to tell by).
        backend: what counts the matches of COCO's metrics.

    Returns:
        Metrics by what was measured: "bbox" and, with masks, "segm"; None where there is no ground truth. The
        boxes of VOC and CrowdHuman sets have COCO's metrics too, with AP50 as their own rules have it.
    """
    if index.kind == "coco":
        ground_truth = read_ground_truth(index.json_path, with_masks=with_masks)
    else:
        ground_truth = ground_truth_from_index(index)
    metrics: dict[str, Metrics | None] = {
        iou_type: evaluate_coco(
            ground_truth,
            results,
            iou_type=iou_type,
            backend=backend,
            class_names=index.class_names,
            category_ids=index.category_ids,
            gt_name=str(index.json_path),
        )
        for iou_type in _iou_types(with_masks)
    }
    box_metrics = metrics["bbox"]
    if box_metrics is not None and index.kind in _OWN_RULES:
        metrics["bbox"] = box_metrics | _OWN_RULES[index.kind](index, results)
    return metrics


def _iou_types(with_masks: bool) -> tuple[IouType, ...]:
    return ("bbox", "segm") if with_masks else ("bbox",)
