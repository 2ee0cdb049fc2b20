"""What becomes of detections at an IoU of 0.5: precision over recall, thresholds, and what is taken for what.

Legend: K classes, D detections, A objects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import hotcoco
import numpy as np

from lgd.data.index import AnnotationIndex, Flags, Floats
from lgd.evaluation.coco import hotcoco_evaluator
from lgd.evaluation.ground_truth import GroundTruth, ground_truth_of, numbered
from lgd.evaluation.predictions import Predictions

IOU = 0.5
"""From which on a box is right."""

DEFAULT_THRESHOLD = 0.5
"""Where no score is the best one, because nothing is right at any."""

RECALLS = np.linspace(0, 1, 101)
"""Where precision is measured."""

_NO_CAP = 2**31 - 1


@dataclass(frozen=True)
class Confusion:
    """Objects (rows) by what they are found as (columns), at the thresholds; the last of both is nothing."""

    classes: Sequence[str]
    counts: Sequence[Sequence[int]]


@dataclass(frozen=True)
class Outcome:
    """What a model's detections are worth.

    Attributes:
        curves: by class that has objects, precision at `RECALLS`, in [0, 1].
        confusion: at the score of each class where its F1 is best.
    """

    curves: Mapping[str, Floats]
    confusion: Confusion


def find_outcome(index: AnnotationIndex, found: Predictions) -> Outcome | None:
    """Hold detections against the objects of a data set; None where it has none.

    Raises:
        ValueError: `found` names an image or a category that `index` does not have.
    """
    truth = ground_truth_of(index, with_masks=False)
    if truth is None:
        return None
    found = numbered(index, replace(found, masks=None))
    evaluator = hotcoco_evaluator(truth, found)
    counts, right = judge(evaluator.image_diagnostics(IOU), len(found))
    objects, labels = count_objects(truth), found.category_ids - 1
    thresholds = np.full(len(objects), DEFAULT_THRESHOLD)
    for label, number in enumerate(objects.tolist()):
        which = counts & (labels == label)
        best = best_threshold(found.scores[which], right[which], number)
        if best is not None:
            thresholds[label] = best[0]
    kept = counts & (found.scores >= thresholds[labels])
    curves = precision_curves(evaluator)
    names = [name for name, number in zip(truth.class_names, objects, strict=True) if number]
    shown = dict(zip(names, curves[objects > 0], strict=True))
    return Outcome(shown, confuse(truth, hotcoco_evaluator(truth, select(found, kept))))


def judge(said: Mapping[str, Any], count: int) -> tuple[Flags, Flags]:
    """Which of `count` detections count, and which of these are right.

    Args:
        said: hotcoco's diagnostics of images.
        count: D.
    """
    counts, right = np.zeros(count, dtype=bool), np.zeros(count, dtype=bool)
    for number, status in said["dt_status"].items():
        counts[number - 1], right[number - 1] = True, status == "tp"
    return counts, right


def count_objects(truth: GroundTruth) -> Any:
    """How many objects of each class there are to be found: (K,) integers."""
    return np.bincount(truth.classes[~truth.crowd] - 1, minlength=len(truth.class_names))


def precision_curves(evaluator: hotcoco.COCOeval) -> Floats:
    """Precision of each class at `RECALLS`, of objects of all sizes: (K, 101); -1 without objects."""
    tables = evaluator.eval
    assert tables is not None
    curves: Floats = tables["precision"][0, :, :, 0, -1]
    return curves.T


def best_threshold(scores: Floats, right: Flags, objects: int) -> tuple[float, float, float, float] | None:
    """The score at which F1 of a class is best, with F1, precision and recall there.

    Halfway between the last detection that is taken and the next one, if there is one.

    Args:
        scores: of the detections of the class that count.
        right: which of them are.
        objects: how many there are to be found.

    Returns:
        None where nothing is right.
    """
    if not right.any() or not objects:
        return None
    order = np.argsort(-scores, kind="stable")
    scores, right = scores[order], right[order]
    hits, taken = np.cumsum(right), np.arange(1, len(right) + 1)
    f1 = 2 * hits / (taken + objects)
    f1[:-1][scores[1:] == scores[:-1]] = -1  # of equal scores all are taken
    last = int(f1.argmax())
    following = scores[min(last + 1, len(scores) - 1)]
    threshold = (scores[last] + following) / 2
    return float(threshold), float(f1[last]), float(hits[last] / taken[last]), float(hits[last] / objects)


def select(found: Predictions, which: Flags) -> Predictions:
    """Some of the detections, without masks."""
    return Predictions(
        found.image_ids[which], found.category_ids[which], found.boxes[which], found.scores[which]
    )


def confuse(truth: GroundTruth, evaluator: hotcoco.COCOeval) -> Confusion:
    """Count what is found as what, from the detections that reach their thresholds."""
    counts = evaluator.confusion_matrix(IOU, max_det=_NO_CAP)["matrix"]
    return Confusion([*truth.class_names, "nothing"], counts.astype(int).tolist())
