"""Detections and ground truth of single images as arrays, and how far their boxes overlap.

Legend: D detections and G objects of an image; all boxes are xyxy pixels of the original image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lgd.data.index import AnnotationIndex, Floats, Integers
from lgd.data.limits import name_some
from lgd.evaluation.predictions import Predictions
from lgd.words import counted


@dataclass(frozen=True)
class Found:
    """What was found on one image, best first; of equal scores as listed.

    Attributes:
        boxes: (D, 4).
        scores: (D,) descending.
        labels: (D,) in [0, num_classes).
    """

    boxes: Floats
    scores: Floats
    labels: Integers

    def of_class(self, label: int) -> Found:
        """Those of one class."""
        which = self.labels == label
        return Found(self.boxes[which], self.scores[which], self.labels[which])


def found_by_image(index: AnnotationIndex, found: Predictions) -> list[Found]:
    """Sort detections by image of `index`, and within it by score.

    Raises:
        ValueError: an image or a category is not in `index`.
    """
    starts, scores = found.boxes[:, :2], found.scores
    boxes = np.concatenate([starts, starts + found.boxes[:, 2:]], axis=1)
    image = places_of(found.image_ids, index.image_ids, "image", index)
    labels = places_of(found.category_ids, np.array(index.category_ids), "category", index)
    order = np.lexsort((-scores, image))
    bounds = np.searchsorted(image[order], np.arange(len(index) + 1))
    return [
        Found(boxes[which], scores[which], labels[which])
        for which in (order[bounds[i] : bounds[i + 1]] for i in range(len(index)))
    ]


def clipped_boxes(index: AnnotationIndex, i: int) -> Floats:
    """Ground-truth boxes of image `i` of `index`, clipped to it as detections are: (G, 4)."""
    height, width = int(index.heights[i]), int(index.widths[i])
    return np.clip(index.boxes(i), 0, [width, height, width, height])


def box_iou(first: Floats, second: Floats) -> Floats:
    """Intersection over union of (D, 4) and (G, 4) boxes: (D, G) in [0, 1]."""
    common = _intersections(first, second)
    union = _areas(first)[:, None] + _areas(second) - common
    return np.divide(common, union, out=np.zeros_like(common), where=union > 0)


def box_coverage(first: Floats, second: Floats) -> Floats:
    """Which part of each of (D, 4) boxes lies in each of (G, 4) boxes: (D, G) in [0, 1]."""
    common = _intersections(first, second)
    area = np.broadcast_to(_areas(first)[:, None], common.shape)
    return np.divide(common, area, out=np.zeros_like(common), where=area > 0)


def places_of(wanted: Integers, known: Integers, kind: str, index: AnnotationIndex) -> Integers:
    """Where each of the (D,) ids `wanted` stands among the ids `known` of `index`: (D,).

    Raises:
        ValueError: some do not.
    """
    order = np.argsort(known)
    place = np.searchsorted(known, wanted, sorter=order).clip(max=len(known) - 1)
    positions: Integers = order[place]
    unknown = np.unique(wanted[known[positions] != wanted]).tolist()
    if unknown:
        raise ValueError(
            f"{index.name}: the detections name {counted(len(unknown), f'unknown {kind} id')} "
            f"({name_some(unknown)}); evaluate on the set that the images were read from"
        )
    return positions


def _intersections(first: Floats, second: Floats) -> Floats:
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    sides: Floats = (high - low).clip(min=0)
    return sides[..., 0] * sides[..., 1]


def _areas(boxes: Floats) -> Floats:
    sides: Floats = (boxes[:, 2:] - boxes[:, :2]).clip(min=0)
    return sides[:, 0] * sides[:, 1]
