"""What became of each detection and of each object, at an IoU of 0.5.

Legend: I images, K classes, D detections, A objects.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import hotcoco
import numpy as np

from lgd.data.index import Flags, Floats, Integers
from lgd.evaluation.coco import hotcoco_evaluator
from lgd.evaluation.ground_truth import GroundTruth
from lgd.evaluation.outcome import IOU, judge
from lgd.evaluation.overlaps import box_coverage, box_iou
from lgd.evaluation.predictions import Predictions

NEAR = 0.1
"""IoU from which on a box is about an object at all."""

RIGHT, LOCATION, CLASS, DUPLICATE, BACKGROUND, BOTH = range(6)
"""Kinds of detections: right, or wrong by TIDE's rules, which are asked in this order."""

IGNORED = -1
"""The kind of those that do not count: on a crowd, or beyond COCO's 100 of a class in an image."""


@dataclass(frozen=True)
class Matches:
    """What became of the detections of one model.

    Attributes:
        images: (D,) in [0, I).
        labels: (D,) in [0, K).
        boxes: (D, 4) xyxy, pixels.
        scores: (D,) in [0, 1].
        kinds: (D,) see above.
        partners: (D,) row of the object that a detection is about; -1 for none.
        object_images: (A,) in [0, I).
        object_labels: (A,) in [0, K).
        object_boxes: (A, 4) xyxy, pixels.
        crowd: (A,) which are neither to be found nor wrong to be found.
        object_scores: (A,) score of the detection that found an object; 0 where none did.
        best_overlaps: (A,) IoU of the detection, of any class, that fits an object best.
        rivals: (A,) row of the surest detection of another class that fits an object; -1 for none.
        in_crowd: (D,) which lie in a crowd by half or more.
    """

    images: Integers
    labels: Integers
    boxes: Floats
    scores: Floats
    kinds: Integers
    partners: Integers
    object_images: Integers
    object_labels: Integers
    object_boxes: Floats
    crowd: Flags
    object_scores: Floats
    best_overlaps: Floats
    rivals: Integers
    in_crowd: Flags

    @cached_property
    def by_image(self) -> Mapping[int, tuple[Integers, Integers]]:
        """Rows of detections and of objects by image; images without either are left out."""
        return _group(self.images, self.object_images)


def match(
    ground_truth: GroundTruth, found: Predictions, evaluator: hotcoco.COCOeval | None = None
) -> Matches:
    """Say what became of each detection and of each object.

    Which detections are right is hotcoco's word; the others are wrong in the way that TIDE names.

    Args:
        ground_truth: the objects.
        found: detections with their numbers.
        evaluator: of these two, where there is one already.
    """
    evaluator = evaluator or hotcoco_evaluator(ground_truth, found)
    said = evaluator.image_diagnostics(IOU)
    kinds, partners = _right_ones(said, len(found))
    truth = ground_truth
    num_objects = len(truth.classes)
    object_scores = np.zeros(num_objects)
    right = np.flatnonzero(kinds == RIGHT)
    object_scores[partners[right]] = found.scores[right]
    best_overlaps, rivals = np.zeros(num_objects), np.full(num_objects, -1)
    in_crowd = np.zeros(len(found), dtype=bool)
    boxes, object_boxes = _corners(found.boxes), _corners(truth.boxes)
    for rows, objects in _group(found.image_ids - 1, truth.images - 1).values():
        crowds, objects = objects[truth.crowd[objects]], objects[~truth.crowd[objects]]
        in_crowd[rows] = (box_coverage(boxes[rows], object_boxes[crowds]) >= IOU).any(axis=1)
        if not len(rows) or not len(objects):
            continue
        overlaps = box_iou(boxes[rows], object_boxes[objects])
        same = found.category_ids[rows][:, None] == truth.classes[objects]
        wrong = kinds[rows] > RIGHT
        which, about = _name_errors(overlaps, same)
        kinds[rows[wrong]] = which[wrong]
        partners[rows[wrong]] = np.where(about[wrong] >= 0, objects[about[wrong]], -1)
        best_overlaps[objects] = overlaps.max(axis=0)
        others = np.where((overlaps >= IOU) & ~same, found.scores[rows][:, None], -1.0)
        surest = others.argmax(axis=0)
        has_rival = others[surest, np.arange(len(objects))] >= 0
        rivals[objects] = np.where(has_rival, rows[surest], -1)
    return Matches(
        found.image_ids - 1,
        found.category_ids - 1,
        boxes,
        found.scores,
        kinds,
        partners,
        truth.images - 1,
        truth.classes - 1,
        object_boxes,
        truth.crowd,
        object_scores,
        best_overlaps,
        rivals,
        in_crowd,
    )


def _right_ones(said: Mapping[str, Any], count: int) -> tuple[Integers, Integers]:
    """Kinds and partners of `count` detections: right ones with their objects, others background for now."""
    counts, right = judge(said, count)
    kinds, partners = np.where(counts, np.where(right, RIGHT, BACKGROUND), IGNORED), np.full(count, -1)
    for number, partner in said["dt_match"].items():
        partners[number - 1] = partner - 1
    return kinds, partners


def _name_errors(overlaps: Floats, same: Flags) -> tuple[Integers, Integers]:
    """What is wrong with detections of an image, were they not right, and the object they are about.

    Args:
        overlaps: (d, a) IoU.
        same: (d, a) whether detection and object are of one class.
    """
    own, other = np.where(same, overlaps, 0.0), np.where(same, 0.0, overlaps)
    own_best, other_best, best = own.max(axis=1), other.max(axis=1), overlaps.max(axis=1)
    conditions = [(own_best >= NEAR) & (own_best < IOU), other_best >= IOU, own_best >= IOU, best < NEAR]
    kinds = np.select(conditions, [LOCATION, CLASS, DUPLICATE, BACKGROUND], BOTH)
    places = [own.argmax(axis=1), other.argmax(axis=1), own.argmax(axis=1), np.full(len(overlaps), -1)]
    return kinds, np.select(conditions, places, other.argmax(axis=1))


def _corners(boxes: Floats) -> Floats:
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def _group(images: Integers, object_images: Integers) -> dict[int, tuple[Integers, Integers]]:
    every = np.union1d(images, object_images)
    parts = []
    for column in (images, object_images):
        order = np.argsort(column, kind="stable")
        starts, ends = (np.searchsorted(column[order], every, side=side) for side in ("left", "right"))
        parts.append([order[start:end] for start, end in zip(starts, ends, strict=True)])
    return dict(zip(every.tolist(), zip(*parts, strict=True), strict=True))
