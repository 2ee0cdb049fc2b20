"""Pascal VOC's average precision at IoU 0.5.

Legend: D detections, best first, and G objects of an image; K classes.
"""

from __future__ import annotations

import numpy as np

from lgd.data.index import AnnotationIndex, Flags, Integers
from lgd.evaluation.coco import Metrics
from lgd.evaluation.overlaps import Found, box_iou, found_by_image
from lgd.evaluation.predictions import Predictions

_OVERLAP = 0.5


def evaluate_voc(index: AnnotationIndex, predictions: Predictions) -> Metrics:
    """Measure AP50 as VOC does.

    A detection belongs to the object of its class that it overlaps most, if their IoU exceeds 0.5. The first
    on an object has found it, further ones are wrong; those on a difficult object do not count, nor does it
    (Everingham et al., "The Pascal visual object classes (VOC) challenge", 2010).

    Args:
        index: the data set, with annotations.
        predictions: detections of all images.

    Returns:
        In percent; None where there is no object:
        AP50: mean over classes of the area under the precision that is still reached at each recall, as in
            VOC2010 and later.
        AP50-07: the same sampled at recall 0, 0.1, ..., 1, as in VOC2007.
        AP50-<class name>: of each class.

    Raises:
        ValueError: `predictions` names an image or a category that `index` does not have.
    """
    counted, hit, scores, labels = [], [], [], []
    num_objects = np.zeros(len(index.class_names), dtype=np.int64)
    for i, found in enumerate(found_by_image(index, predictions)):
        ignored = index.difficult(i) | index.crowd(i)
        np.add.at(num_objects, index.labels(i)[~ignored], 1)
        image_counted, image_hit = _match(found, index, i, ignored)
        counted.append(image_counted)
        hit.append(image_hit)
        scores.append(found.scores)
        labels.append(found.labels)
    order = np.argsort(-np.concatenate(scores), kind="stable")
    order = order[np.concatenate(counted)[order]]
    hits, classes = np.concatenate(hit)[order], np.concatenate(labels)[order]
    per_class = {k: (hits[classes == k], n) for k, n in enumerate(num_objects.tolist()) if n}
    areas = {k: _area(*each) for k, each in per_class.items()}
    sampled = [_sampled(*each) for each in per_class.values()]
    return {
        "AP50": 100 * float(np.mean(list(areas.values()))) if areas else None,
        "AP50-07": 100 * float(np.mean(sampled)) if sampled else None,
    } | {_key(name): 100 * areas[k] if k in areas else None for k, name in enumerate(index.class_names)}


def name_voc_metrics(index: AnnotationIndex) -> list[str]:
    """The names of what `evaluate_voc` measures."""
    return ["AP50", "AP50-07", *map(_key, index.class_names)]


def _key(class_name: str) -> str:
    """What AP50 of a class is called; of one called "07" not like the mean over all."""
    return "AP50-class 07" if class_name == "07" else f"AP50-{class_name}"


def _match(found: Found, index: AnnotationIndex, i: int, ignored: Flags) -> tuple[Flags, Flags]:
    """Tell which detections of image `i` count, and which have found an object: (D,) each."""
    num_detections = len(found.boxes)
    if len(ignored) == 0:
        return np.ones(num_detections, dtype=np.bool_), np.zeros(num_detections, dtype=np.bool_)
    labels = index.labels(i)
    is_of_class = (found.labels[:, None] == labels) | (labels == len(index.class_names))
    iou = np.where(is_of_class, box_iou(found.boxes, index.boxes(i)), 0)
    best = iou.argmax(axis=1)
    overlaps = iou[np.arange(num_detections), best] > _OVERLAP
    on_object = np.flatnonzero(overlaps & ~ignored[best])
    hit = np.zeros(num_detections, dtype=np.bool_)
    # Detections come best first, so the first of those on the same object has found it.
    hit[on_object[np.unique(best[on_object], return_index=True)[1]]] = True
    return ~(overlaps & ignored[best]), hit


def _area(hit: Flags, num_objects: int) -> float:
    """Area under the precision still reached at each recall, from all detections of a class, best first."""
    num_hits = np.cumsum(hit)
    precision = num_hits / np.arange(1, len(hit) + 1)
    still_reached = np.maximum.accumulate(precision[::-1])[::-1]
    return float(still_reached[hit].sum() / num_objects)


def _sampled(hit: Flags, num_objects: int) -> float:
    """Mean of the precision still reached at recall 0, 0.1, ..., 1."""
    num_hits: Integers = np.cumsum(hit)
    precision = num_hits / np.arange(1, len(hit) + 1)
    # In integers, since 0.1, 0.2, ... are no exact numbers.
    reached = [precision[10 * num_hits >= tenths * num_objects] for tenths in range(11)]
    return float(np.mean([values.max() if values.size else 0.0 for values in reached]))
