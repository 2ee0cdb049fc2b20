"""Box and mask AP and AR as COCO defines them, from detections and ground truth in COCO's format.

The counting is done by hotcoco (fast) or pycocotools (the reference); both give the same precision and recall
tables, and one summary turns either into the same numbers.

Legend: T = 10 IoU thresholds 0.50:0.05:0.95; R = 101 recall thresholds; K categories; A = 4 areas (all,
small, medium, large); M = 3 caps on the detections of a category in an image (1, 10, 100).
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import hotcoco
import numpy as np
import numpy.typing as npt

from lgd.data.index import Integers
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
_CAPS = (1, 10, 100)


def read_ground_truth(gt_json: Path, *, with_masks: bool) -> dict[str, Any] | None:
    """Read what `evaluate_coco` needs of an annotation file.

    All objects count, those that training drops too (boxes without a size), as in COCO's own evaluation.

    Args:
        gt_json: COCO annotation file.
        with_masks: read the masks too.

    Returns:
        images (id, width, height), categories (id, name) and annotations (id, image_id, category_id, bbox,
        area, iscrowd; segmentation where there is a mask) as in the file; None where it has no annotations.
    """
    with gt_json.open(encoding="utf-8") as file:
        content = json.load(file)
    if not content.get("annotations"):
        return None
    return {
        "images": [{key: image[key] for key in ("id", "width", "height")} for image in content["images"]],
        "categories": [{key: category[key] for key in ("id", "name")} for category in content["categories"]],
        # Numbered anew from 1: pycocotools takes an object whose id is 0 for one not found.
        "annotations": [
            _object(number, each, with_masks) for number, each in enumerate(content["annotations"], start=1)
        ],
    }


def evaluate_coco(
    ground_truth: Mapping[str, Any] | None,
    found: Predictions,
    *,
    iou_type: IouType = "bbox",
    backend: Backend = "hotcoco",
    class_names: Sequence[str],
    category_ids: Sequence[int],
    image_ids: Collection[int] | None = None,
    gt_name: str,
) -> Metrics | None:
    """Measure AP and AR of boxes or masks.

    The areas (small, medium, large) are the ground truth's as given, and of detections the box's or, for
    masks, the mask's.

    Args:
        ground_truth: as from `read_ground_truth`: ids of annotations are above 0, each has an area;
            segmentations are polygons of at least three points or RLE. None where there is nothing to
            measure against.
        found: detections of all images.
        iou_type: "bbox" or "segm".
        backend: what counts the matches.
        class_names: the K class names by label.
        category_ids: the ground truth's category id of each class, by label.
        image_ids: the images to measure on; all of the ground truth when None.
        gt_name: what to call the ground truth in messages.

    Returns:
        AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100, ARs, ARm, ARl and "AP-<class name>" for each class,
        in percent; None as a value where no object is there to be found (a class or size that does not
        occur). None altogether without ground truth, or without masks in it where masks are to be measured.

    Raises:
        ValueError: `found` names an image or a category that the ground truth does not have, or pycocotools
            is asked for and not installed.
    """
    if ground_truth is None:
        logger.info("%s has no annotations: only predictions are written, there is no AP", gt_name)
        return None
    known_images = [image["id"] for image in ground_truth["images"]]
    _check_ids(gt_name, "image", found.image_ids, known_images)
    _check_ids(gt_name, "category", found.category_ids, category_ids)
    if iou_type == "segm":
        masked = _fill_in_masks(ground_truth, gt_name)
        if masked is None:
            logger.info("%s has no masks: there is no mask AP", gt_name)
            return None
        ground_truth = masked

    count = {"hotcoco": _count_with_hotcoco, "pycocotools": _count_with_pycocotools}[backend]
    used_images = sorted(known_images if image_ids is None else image_ids)
    order = np.argsort(category_ids)
    precision, recall = count(ground_truth, found, iou_type, used_images, [category_ids[k] for k in order])
    names = _distinct_names(class_names, category_ids)
    return _summarise(precision, recall, [names[k] for k in order])


def _object(number: int, annotation: Mapping[str, Any], with_mask: bool) -> dict[str, Any]:
    """One annotation; a missing area is the box's, a missing iscrowd is 0."""
    area, (_, _, width, height) = annotation.get("area"), annotation["bbox"]
    mask = _usable_mask(annotation.get("segmentation")) if with_mask else None
    return {
        "id": number,
        "image_id": annotation["image_id"],
        "category_id": annotation["category_id"],
        "bbox": annotation["bbox"],
        "area": width * height if area is None or math.isnan(area) else area,
        "iscrowd": int(bool(annotation.get("iscrowd"))),
        **({"segmentation": mask} if mask else {}),
    }


def _usable_mask(segmentation: Any) -> Any:
    """The RLE, or the polygons of three points and more: the same that training takes."""
    if isinstance(segmentation, Mapping):
        return segmentation
    return [polygon for polygon in segmentation or [] if len(polygon) >= 6 and len(polygon) % 2 == 0]


def _fill_in_masks(ground_truth: Mapping[str, Any], gt_name: str) -> dict[str, Any] | None:
    """Give objects without a mask an empty one, which nothing matches; None where no object has a mask."""
    annotations = ground_truth["annotations"]
    num_missing = sum("segmentation" not in annotation for annotation in annotations)
    if num_missing == len(annotations):
        return None
    if num_missing:
        logger.warning(
            "%s: %d of %d objects have no mask; for mask AP they count as not found",
            gt_name,
            num_missing,
            len(annotations),
        )
    sizes = {image["id"]: (image["height"], image["width"]) for image in ground_truth["images"]}
    filled = [{"segmentation": _empty_mask(*sizes[each["image_id"]]), **each} for each in annotations]
    return {**ground_truth, "annotations": filled}


def _empty_mask(height: int, width: int) -> dict[str, list[int]]:
    return {"size": [height, width], "counts": [height * width]}


def _check_ids(gt_name: str, kind: str, used: Integers, known: Sequence[int]) -> None:
    unknown = sorted(set(np.unique(used).tolist()).difference(known))
    if unknown:
        raise ValueError(
            f"{gt_name}: the detections name {len(unknown)} {kind} id(s) that are not there "
            f"({', '.join(map(str, unknown[:5]))}{', ...' if len(unknown) > 5 else ''}); "
            "evaluate on the set that the images were read from"
        )


def _distinct_names(class_names: Sequence[str], category_ids: Sequence[int]) -> list[str]:
    """The class names, with the category id behind those that occur twice, so that no class hides another."""
    occurrences = Counter(class_names)
    return [
        name if occurrences[name] == 1 else f"{name} ({category_id})"
        for name, category_id in zip(class_names, category_ids, strict=True)
    ]


def _count_with_hotcoco(
    ground_truth: Mapping[str, Any],
    found: Predictions,
    iou_type: IouType,
    image_ids: Sequence[int],
    category_ids: Sequence[int],
) -> tuple[Array, Array]:
    """Count with hotcoco: precision (T, R, K, A, M) and recall (T, K, A, M) in [0, 1], -1 without objects."""
    gt = hotcoco.COCO(dict(ground_truth))
    evaluator = hotcoco.COCOeval(gt, _load_with_hotcoco(gt, found, iou_type), iou_type)
    evaluator.params.img_ids = list(image_ids)
    evaluator.params.cat_ids = list(category_ids)
    evaluator.evaluate()
    evaluator.accumulate()
    tables = evaluator.eval
    assert tables is not None
    return tables["precision"], tables["recall"]


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
    ground_truth: Mapping[str, Any],
    found: Predictions,
    iou_type: IouType,
    image_ids: Sequence[int],
    category_ids: Sequence[int],
) -> tuple[Array, Array]:
    """Count with pycocotools; returns what `_count_with_hotcoco` returns."""
    try:
        from pycocotools import mask
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise ValueError(
            "pycocotools is not installed: pip install pycocotools, or evaluate with hotcoco"
        ) from error

    # Its own loadRes fails on an empty list, so the detections become a data set by hand.
    results = [
        {**result, "id": number, "iscrowd": 0}
        | {"area": mask.area(result["segmentation"]) if iou_type == "segm" else math.prod(result["bbox"][2:])}
        for number, result in enumerate(found.to_results(), start=1)
    ]
    gt, detected = COCO(), COCO()
    # It writes into the annotations, so that it gets copies.
    gt.dataset = {**ground_truth, "annotations": [dict(each) for each in ground_truth["annotations"]]}
    detected.dataset = {**ground_truth, "annotations": results}
    with contextlib.redirect_stdout(io.StringIO()):
        gt.createIndex()
        detected.createIndex()
        evaluator = COCOeval(gt, detected, iou_type)
        evaluator.params.imgIds = list(image_ids)
        evaluator.params.catIds = list(category_ids)
        evaluator.evaluate()
        evaluator.accumulate()
    return evaluator.eval["precision"], evaluator.eval["recall"]


def _summarise(precision: Array, recall: Array, class_names: Sequence[str]) -> Metrics:
    """Average precision (T, R, K, A, M) and recall (T, K, A, M) into the named numbers, in percent."""
    best = precision[..., -1]
    metrics = {"AP": _mean(best[..., 0]), "AP50": _mean(best[0, ..., 0]), "AP75": _mean(best[5, ..., 0])}
    metrics |= {f"AP{area}": _mean(best[..., a]) for a, area in enumerate(_AREAS) if area}
    metrics |= {f"AR{cap}": _mean(recall[..., 0, m]) for m, cap in enumerate(_CAPS)}
    metrics |= {f"AR{area}": _mean(recall[..., a, -1]) for a, area in enumerate(_AREAS) if area}
    metrics |= {f"AP-{name}": _mean(best[:, :, k, 0]) for k, name in enumerate(class_names)}
    return metrics


def _mean(values: Array) -> float | None:
    """The mean in percent over the entries that have objects (-1 marks the others); None if none has."""
    present = values[values > -1]
    return 100 * float(present.mean()) if present.size else None
