"""Measure: what one model gets wrong on a data set, in numbers.

Legend: I images, K classes, D detections.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import hotcoco
import numpy as np

from lgd.analyse.matches import IGNORED, NEAR, RIGHT, Matches, match
from lgd.data.index import AnnotationIndex, Flags, Floats
from lgd.evaluation.coco import Metrics, hotcoco_evaluator
from lgd.evaluation.ground_truth import GroundTruth, numbered
from lgd.evaluation.outcome import (
    DEFAULT_THRESHOLD,
    IOU,
    RECALLS,
    Confusion,
    best_threshold,
    confuse,
    count_objects,
    precision_curves,
    select,
)
from lgd.evaluation.predictions import Predictions
from lgd.evaluation.score import score

ERRORS = {
    "Cls": ("class", "right place, wrong class"),
    "Loc": ("location", f"right class, but the box fits by less than {IOU}"),
    "Both": ("both", "wrong class, and the box fits badly"),
    "Dupe": ("duplicate", "an object that a surer box has found already"),
    "Bkg": ("background", f"nothing labelled is there (IoU below {NEAR})"),
    "Miss": ("missed", "a label that nothing found, not even with another error"),
}
"""TIDE's kinds of errors by hotcoco's names: ours, and what they mean."""


@dataclass(frozen=True)
class ErrorKind:
    """Errors of one kind.

    Attributes:
        name: of the kind.
        meaning: in words.
        cost: AP50 that would be won without them, percent.
        count: among all detections.
        count_at_threshold: among those that reach the thresholds of their classes.
    """

    name: str
    meaning: str
    cost: float
    count: int
    count_at_threshold: int


@dataclass(frozen=True)
class ClassNumbers:
    """What is measured of one class; None where there is nothing to measure.

    Attributes:
        name: of the class.
        objects: how many there are to be found.
        ap: percent.
        ap50: percent.
        threshold: the score at which F1 is best, at an IoU of 0.5.
        f1: there, in [0, 1].
        precision: there, in [0, 1].
        recall: there, in [0, 1].
        calibration_error: how far scores are from shares of right detections, in [0, 1].
        curve: precision at recalls of 0, 0.01, ..., 1.
    """

    name: str
    objects: int
    ap: float | None
    ap50: float | None
    threshold: float | None
    f1: float | None
    precision: float | None
    recall: float | None
    calibration_error: float | None
    curve: Sequence[float] | None


@dataclass(frozen=True)
class Bin:
    """Detections of scores from `low` to `high`: their mean score, the share that is right, their number."""

    low: float
    high: float
    score: float
    right: float
    count: int


@dataclass(frozen=True)
class Calibration:
    """Scores held against shares of right detections: mean and largest gap in [0, 1], and the bins."""

    mean_error: float
    largest_error: float
    bins: Sequence[Bin]


@dataclass(frozen=True)
class Findings:
    """What one model gets wrong.

    Attributes:
        name: what the run is called.
        metrics: as results.json has them.
        errors: of each kind.
        classes: in the order of the labels.
        calibration: of all classes together.
        confusion: of classes.
        least_score: of all detections; None where there are none.
        detections: their number.
    """

    name: str
    metrics: Metrics
    errors: Sequence[ErrorKind]
    classes: Sequence[ClassNumbers]
    calibration: Calibration
    confusion: Confusion
    least_score: float | None
    detections: int

    @property
    def hopeless(self) -> list[str]:
        """Classes that have objects, and of which nothing is right at any score."""
        return [each.name for each in self.classes if each.objects and each.threshold is None]


@dataclass(frozen=True)
class Analysis:
    """The numbers of a model, and what they were made from.

    Attributes:
        findings: the numbers.
        matches: what became of each detection.
        found: the detections with their numbers.
        kept: (D,) which count and reach the threshold of their class.
    """

    findings: Findings
    matches: Matches
    found: Predictions
    kept: Flags


def analyse(index: AnnotationIndex, ground_truth: GroundTruth, found: Predictions, name: str) -> Analysis:
    """Measure what a model gets wrong.

    Args:
        index: the data set.
        ground_truth: its objects.
        found: detections on it, with the ids of `index`.
        name: what the run is called.

    Raises:
        ValueError: `found` names an image or a category that `index` does not have.
    """
    found = replace(found, masks=None)
    metrics = score(index, {"model": found}, with_masks=False, backend="hotcoco")["model"]["bbox"]
    assert metrics is not None, "as there is ground truth"
    found = numbered(index, found)
    evaluator = hotcoco_evaluator(ground_truth, found)
    matches = match(ground_truth, found, evaluator)
    calibration = evaluator.calibration(iou_threshold=IOU)
    classes = _measure_classes(ground_truth, matches, metrics, evaluator, calibration["per_category"])
    thresholds = np.array(
        [DEFAULT_THRESHOLD if each.threshold is None else each.threshold for each in classes]
    )
    kept = (matches.kinds != IGNORED) & (matches.scores >= thresholds[matches.labels])
    at_thresholds = hotcoco_evaluator(ground_truth, select(found, kept))
    bins = [
        Bin(each["bin_lower"], each["bin_upper"], each["avg_confidence"], each["avg_accuracy"], each["count"])
        for each in calibration["bins"]
    ]
    findings = Findings(
        name,
        metrics,
        _measure_errors(evaluator, at_thresholds),
        classes,
        Calibration(calibration["ece"], calibration["mce"], bins),
        confuse(ground_truth, at_thresholds),
        float(found.scores.min()) if len(found) else None,
        len(found),
    )
    return Analysis(findings, matches, found, kept)


def _measure_errors(everything: hotcoco.COCOeval, at_thresholds: hotcoco.COCOeval) -> list[ErrorKind]:
    said, shown = (each.tide_errors(IOU, NEAR) for each in (everything, at_thresholds))
    return [
        ErrorKind(name, meaning, 100 * said["delta_ap"][key], said["counts"][key], shown["counts"][key])
        for key, (name, meaning) in ERRORS.items()
    ]


def _measure_classes(
    truth: GroundTruth,
    matches: Matches,
    metrics: Metrics,
    evaluator: hotcoco.COCOeval,
    errors: Mapping[str, float],
) -> list[ClassNumbers]:
    curves, objects = precision_curves(evaluator), count_objects(truth)
    numbers = []
    for label, (name, count) in enumerate(zip(truth.class_names, objects.tolist(), strict=True)):
        curve = curves[label] if count else None
        threshold, f1, precision, recall = threshold_of(matches, label, count) or (None,) * 4
        numbers.append(
            ClassNumbers(
                name,
                count,
                metrics[f"AP-{name}"],
                None if curve is None else 100 * float(curve.mean()),
                threshold,
                f1,
                precision,
                recall,
                errors.get(name),
                None if curve is None else curve.tolist(),
            )
        )
    return numbers


def threshold_of(matches: Matches, label: int, objects: int) -> tuple[float, float, float, float] | None:
    """What `best_threshold` says of a class."""
    which = (matches.labels == label) & (matches.kinds != IGNORED)
    return best_threshold(matches.scores[which], matches.kinds[which] == RIGHT, objects)


def precision_over_recall(classes: Sequence[ClassNumbers]) -> tuple[Floats, Floats]:
    """Recalls (101,) and the mean precision there of the classes that have objects."""
    curves = [each.curve for each in classes if each.curve is not None]
    return RECALLS, np.mean(curves, axis=0)
