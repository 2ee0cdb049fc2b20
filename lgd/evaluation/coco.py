"""Box and mask AP and AR as COCO defines them, from detections and ground truth.

The counting is done by hotcoco (fast) or pycocotools (the reference); both give the same precision and recall
tables, and one summary turns either into the same numbers.

Legend: T = 10 IoU thresholds 0.50:0.05:0.95; R = 101 recall thresholds; K categories; A = 4 areas (all,
small, medium, large); M = 3 caps on the detections of a category in an image (1, 10, 100), and perhaps a
fourth.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import hotcoco
import numpy as np
import numpy.typing as npt

from lgd.config.values import ConfigError
from lgd.evaluation.ground_truth import GroundTruth, Mask
from lgd.evaluation.predictions import Predictions

logger = logging.getLogger(__name__)

Metrics = dict[str, float | None]
"""AP and AR by name, in percent; None where there is no ground truth to measure against."""

Backend = Literal["hotcoco", "pycocotools"]
"""What counts the matches."""

IouType = Literal["bbox", "segm"]
"""What is held against each other: boxes or masks."""

Array = npt.NDArray[np.float64]

_AREAS = ("", "s", "m", "l")
COCO_CAP = 100
"""Detections of a category in an image that COCO counts at most."""

_CAPS = (1, 10, COCO_CAP)


def evaluate_coco(
    ground_truth: GroundTruth | None,
    found: Predictions,
    *,
    iou_type: IouType = "bbox",
    backend: Backend = "hotcoco",
    cap: int = COCO_CAP,
    name: str,
) -> Metrics | None:
    """Measure AP and AR of boxes or masks.

    The areas (small, medium, large) are the ground truth's as given, and of detections the box's or, for
    masks, the mask's.

    Args:
        ground_truth: None where there is nothing to measure against.
        found: detections of all images, with the ground truth's numbers (`lgd.evaluation.ground_truth`).
        iou_type: "bbox" or "segm".
        backend: what counts the matches.
        cap: how many detections of an image there are at most; above COCO's 100, what they amount to with as
            many of a class is measured too.
        name: what messages call the ground truth.

    Returns:
        AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100, ARs, ARm, ARl and "AP-<class name>" for each class,
        in percent; None as a value where no object is there to be found (a class or size that does not
        occur). With a cap N above 100 also AP@N, AP50@N, AP75@N and AR@N, where N a class and image count and
        not 100. None altogether without ground truth, or without masks in it where masks are to be measured.

    Raises:
        ConfigError: pycocotools is asked for and not installed.
    """
    require_backend(backend)
    if ground_truth is None:
        logger.info("%s has no annotations: only predictions are written, there is no AP", name)
        return None
    if iou_type == "segm":
        ground_truth = _fill_in_masks(ground_truth, name)
        if ground_truth is None:
            logger.info("%s has no masks: there is no mask AP", name)
            return None
    count = {"hotcoco": _count_with_hotcoco, "pycocotools": _count_with_pycocotools}[backend]
    precision, recall = count(ground_truth, found, iou_type, _caps(cap))
    return _summarise(precision, recall, ground_truth.class_names, cap)


def name_metrics(class_names: Sequence[str], cap: int = COCO_CAP) -> list[str]:
    """The names of what `evaluate_coco` measures for such classes."""
    precision = np.full((10, 1, len(class_names), len(_AREAS), len(_caps(cap))), -1.0)
    return list(_summarise(precision, precision[:, 0], class_names, cap))


def _caps(cap: int) -> list[int]:
    return [*_CAPS, cap] if cap > COCO_CAP else list(_CAPS)


def require_backend(backend: Backend) -> None:
    """See that what counts the matches is there; raises ConfigError where it is not."""
    if backend not in get_args(Backend):
        raise ConfigError(f"no evaluation backend {backend!r}; give one of {', '.join(get_args(Backend))}")
    if backend == "hotcoco":
        return
    try:
        import pycocotools.cocoeval  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "TRAIN.EVAL_BACKEND pycocotools: it is not installed; pip install pycocotools, or evaluate with "
            "hotcoco"
        ) from error


def _fill_in_masks(ground_truth: GroundTruth, name: str) -> GroundTruth | None:
    """Give objects without a mask an empty one, which nothing matches; None where no object has a mask."""
    masks = ground_truth.masks or []
    num_missing = sum(not mask for mask in masks)
    if num_missing == len(masks):
        return None
    if num_missing:
        logger.warning(
            "%s: %d of %d objects have no mask; for mask AP they count as not found",
            name,
            num_missing,
            len(masks),
        )
    sizes = np.stack([ground_truth.heights, ground_truth.widths], axis=1)[ground_truth.images - 1].tolist()
    filled = [mask or _empty_mask(*size) for mask, size in zip(masks, sizes, strict=True)]
    return replace(ground_truth, masks=filled)


def _empty_mask(height: int, width: int) -> dict[str, list[int]]:
    return {"size": [height, width], "counts": [height * width]}


def _images(ground_truth: GroundTruth) -> list[dict[str, int]]:
    sizes = zip(ground_truth.heights.tolist(), ground_truth.widths.tolist(), strict=True)
    return [{"id": i, "height": height, "width": width} for i, (height, width) in enumerate(sizes, start=1)]


def _categories(ground_truth: GroundTruth) -> list[dict[str, Any]]:
    return [{"id": k, "name": name} for k, name in enumerate(ground_truth.class_names, start=1)]


def _count_with_hotcoco(
    ground_truth: GroundTruth, found: Predictions, iou_type: IouType, caps: list[int]
) -> tuple[Array, Array]:
    """Count with hotcoco: precision (T, R, K, A, M) and recall (T, K, A, M) in [0, 1], -1 without objects."""
    tables = hotcoco_evaluator(ground_truth, found, iou_type=iou_type, caps=caps).eval
    assert tables is not None
    return tables["precision"], tables["recall"]


def hotcoco_evaluator(
    ground_truth: GroundTruth,
    found: Predictions,
    *,
    iou_type: IouType = "bbox",
    caps: Sequence[int] = _CAPS,
) -> hotcoco.COCOeval:
    """Hold detections against ground truth, and return what can be asked for more than AP.

    Objects and detections have ids by their rows, from 1.

    Args:
        ground_truth: the objects.
        found: detections with their numbers.
        iou_type: "bbox" or "segm".
        caps: on the detections of a category in an image.
    """
    masks: Any = ground_truth.masks if iou_type == "segm" else None
    gt = hotcoco.COCO.from_arrays(
        _images(ground_truth),
        _categories(ground_truth),
        ground_truth.images,
        ground_truth.classes,
        ground_truth.boxes,
        area=ground_truth.areas,
        iscrowd=ground_truth.crowd,
        segmentation=masks,
    )
    evaluator = hotcoco.COCOeval(gt, _load_with_hotcoco(gt, found, iou_type), iou_type)
    evaluator.params.max_dets = list(caps)
    evaluator.evaluate()
    evaluator.accumulate()
    return evaluator


def _load_with_hotcoco(gt: hotcoco.COCO, found: Predictions, iou_type: IouType) -> hotcoco.COCO:
    columns = [found.image_ids[:, None], found.boxes, found.scores[:, None], found.category_ids[:, None]]
    table = np.concatenate(columns, axis=1, dtype=np.float64)
    if iou_type == "bbox" or found.masks is None:
        return gt.load_res(table)
    masks: list[Any] = found.masks.to_rle()
    detected = gt.load_res(table, segmentation=masks)
    # It has taken the boxes' areas.
    detected.update_anns(ids=np.arange(1, len(found) + 1), area=hotcoco.mask.area(masks))
    return detected


def _count_with_pycocotools(
    ground_truth: GroundTruth, found: Predictions, iou_type: IouType, caps: list[int]
) -> tuple[Array, Array]:
    """Count with pycocotools; returns what `_count_with_hotcoco` returns."""
    from pycocotools import mask
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    # Its own loadRes fails on an empty list, so the detections become a data set by hand.
    results = [
        {**result, "id": number, "iscrowd": 0}
        | {"area": mask.area(result["segmentation"]) if iou_type == "segm" else math.prod(result["bbox"][2:])}
        for number, result in enumerate(found.to_results(), start=1)
    ]
    shared = {"images": _images(ground_truth), "categories": _categories(ground_truth)}
    gt, detected = COCO(), COCO()
    gt.dataset = {**shared, "annotations": _annotations(ground_truth, iou_type == "segm")}
    detected.dataset = {**shared, "annotations": results}
    with contextlib.redirect_stdout(io.StringIO()):
        gt.createIndex()
        detected.createIndex()
        evaluator = COCOeval(gt, detected, iou_type)
        evaluator.params.maxDets = caps
        evaluator.evaluate()
        evaluator.accumulate()
    return evaluator.eval["precision"], evaluator.eval["recall"]


def _annotations(ground_truth: GroundTruth, with_masks: bool) -> list[dict[str, Any]]:
    """The objects as pycocotools takes them, numbered from 1: it takes one whose id is 0 for not found."""
    columns = (
        ground_truth.images,
        ground_truth.classes,
        ground_truth.boxes,
        ground_truth.areas,
        ground_truth.crowd,
    )
    rows = zip(*(column.tolist() for column in columns), strict=True)
    annotations: list[dict[str, Any]] = [
        {
            "id": number,
            "image_id": image,
            "category_id": category,
            "bbox": box,
            "area": area,
            "iscrowd": int(crowd),
        }
        for number, (image, category, box, area, crowd) in enumerate(rows, start=1)
    ]
    if with_masks and ground_truth.masks is not None:
        for annotation, mask in zip(annotations, ground_truth.masks, strict=True):
            annotation["segmentation"] = _as_lists(mask)
    return annotations


def _as_lists(mask: Mask) -> Any:
    if isinstance(mask, Mapping):
        return {**mask, "counts": list(map(int, mask["counts"]))}
    return [polygon.tolist() for polygon in mask]


def _summarise(precision: Array, recall: Array, class_names: Sequence[str], cap: int) -> Metrics:
    """Average precision (T, R, K, A, M) and recall (T, K, A, M) into the named numbers, in percent."""
    last = len(_CAPS) - 1
    best = precision[..., last]
    metrics = {"AP": _mean(best[..., 0]), "AP50": _mean(best[0, ..., 0]), "AP75": _mean(best[5, ..., 0])}
    metrics |= {f"AP{area}": _mean(best[..., a]) for a, area in enumerate(_AREAS) if area}
    metrics |= {f"AR{cap}": _mean(recall[..., 0, m]) for m, cap in enumerate(_CAPS)}
    metrics |= {f"AR{area}": _mean(recall[..., a, last]) for a, area in enumerate(_AREAS) if area}
    if cap > COCO_CAP:
        beyond = precision[..., 0, -1]
        named = {"AP": beyond, "AP50": beyond[0], "AP75": beyond[5], "AR": recall[..., 0, -1]}
        metrics |= {f"{name}@{cap}": _mean(values) for name, values in named.items()}
    metrics |= {f"AP-{name}": _mean(best[:, :, k, 0]) for k, name in enumerate(class_names)}
    return metrics


def _mean(values: Array) -> float | None:
    """The mean in percent over the entries that have objects (-1 marks the others); None if none has."""
    present = values[values > -1]
    return 100 * float(present.mean()) if present.size else None
