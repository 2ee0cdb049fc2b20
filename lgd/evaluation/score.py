"""Detections held against a data set's ground truth, by the rules of its kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lgd.data.index import AnnotationIndex
from lgd.evaluation.coco import Backend, Metrics, evaluate_coco, read_ground_truth


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
        Metrics by what was measured: "bbox" and, with masks, "segm"; None where there is no ground truth.
    """
    return _score_coco(index, results, with_masks=with_masks, backend=backend)


def _score_coco(
    index: AnnotationIndex, results: Sequence[Mapping[str, Any]], *, with_masks: bool, backend: Backend
) -> dict[str, Metrics | None]:
    ground_truth = read_ground_truth(index.json_path, with_masks=with_masks)
    return {
        iou_type: evaluate_coco(
            ground_truth,
            results,
            iou_type=iou_type,
            backend=backend,
            class_names=index.class_names,
            category_ids=index.category_ids,
            gt_name=str(index.json_path),
        )
        for iou_type in (("bbox", "segm") if with_masks else ("bbox",))
    }
