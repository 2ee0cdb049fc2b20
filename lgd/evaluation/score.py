"""Score: detections held against a data set's ground truth, by the rules of its kind."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from lgd.data.index import AnnotationIndex
from lgd.evaluation.coco import COCO_CAP, Backend, IouType, Metrics, evaluate_coco, name_metrics
from lgd.evaluation.crowdhuman import CROWDHUMAN_METRICS, evaluate_crowdhuman
from lgd.evaluation.ground_truth import GroundTruth, ground_truth_of, numbered
from lgd.evaluation.predictions import Predictions
from lgd.evaluation.voc import evaluate_voc, name_voc_metrics

LOWER_IS_BETTER = ("mMR",)
"""Metrics of errors."""

_OWN_NAMES: Mapping[str, Callable[[AnnotationIndex], list[str]]] = {
    "voc": name_voc_metrics,
    "crowdhuman": lambda index: list(CROWDHUMAN_METRICS),
}
_OWN_RULES: Mapping[str, Callable[[AnnotationIndex, Predictions], Metrics]] = {
    "voc": evaluate_voc,
    "crowdhuman": evaluate_crowdhuman,
}


def score(
    index: AnnotationIndex,
    found: Mapping[str, Predictions],
    *,
    with_masks: bool,
    backend: Backend,
    cap: int = COCO_CAP,
) -> dict[str, dict[str, Metrics | None]]:
    """Score the detections of one or more models on one data set.

    Args:
        index: the data set.
        found: detections of all its images by model, "student" and perhaps "teacher".
        with_masks: whether the models predict masks (there may be no detection to tell by).
        backend: what counts the matches of COCO's metrics.
        cap: see `evaluate_coco`.

    Returns:
        Of each model metrics by what was measured: "bbox" and, with masks, "segm"; None where there is no
        ground truth. The boxes of VOC and CrowdHuman sets have COCO's metrics too, with AP50 as their own
        rules have it.

    Raises:
        ValueError: `found` names an image or a category that `index` does not have.
        ConfigError: pycocotools is asked for and not installed.
    """
    with without_collections():
        ground_truth = ground_truth_of(index, with_masks=with_masks)
        return {
            model: _score_model(index, ground_truth, each, with_masks, backend, cap)
            for model, each in found.items()
        }


def _score_model(
    index: AnnotationIndex,
    ground_truth: GroundTruth | None,
    found: Predictions,
    with_masks: bool,
    backend: Backend,
    cap: int,
) -> dict[str, Metrics | None]:
    name, detections = str(index.json_path), numbered(index, found)
    metrics: dict[str, Metrics | None] = {
        iou_type: evaluate_coco(
            ground_truth, detections, iou_type=iou_type, backend=backend, cap=cap, name=name
        )
        for iou_type in _iou_types(with_masks)
    }
    box_metrics = metrics["bbox"]
    if box_metrics is not None and index.kind in _OWN_RULES:
        metrics["bbox"] = box_metrics | _OWN_RULES[index.kind](index, found)
    return metrics


def _iou_types(with_masks: bool) -> tuple[IouType, ...]:
    return ("bbox", "segm") if with_masks else ("bbox",)


def name_scores(index: AnnotationIndex, *, with_masks: bool, cap: int = COCO_CAP) -> dict[str, list[str]]:
    """The names of what `score` measures on a data set with annotations, by "bbox" and "segm"."""
    names: dict[str, list[str]] = {
        iou_type: name_metrics(index.class_names, cap) for iou_type in _iou_types(with_masks)
    }
    own = _OWN_NAMES.get(index.kind)
    return names if own is None else names | {"bbox": list(dict.fromkeys(names["bbox"] + own(index)))}


def is_better(name: str, value: float, than: float) -> bool:
    """Whether a metric of this name is the better one."""
    return value < than if name in LOWER_IS_BETTER else value > than


@contextmanager
def without_collections() -> Iterator[None]:
    """Keep Python from searching for garbage: hundreds of thousands of small objects come, and all stay."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
