"""What detections are held against: the objects of a data set as columns, and numbered for those that count.

Whatever ids the annotation file has, images, classes and objects are numbered from 1 on here, in the order of
the data set: what counts the matches takes ids for floats, or zero for none.

Legend: I images, K classes, A objects of them all, D detections.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lgd.data.index import AnnotationIndex, Flags, Floats, Integers, RunLengths
from lgd.evaluation.overlaps import places_of
from lgd.evaluation.predictions import Predictions

Mask = Sequence[Floats] | Mapping[str, Any]
"""As COCO has it: polygons, or run lengths {"size": [h, w], "counts": (R,) integers}; empty: no mask."""


@dataclass(frozen=True)
class GroundTruth:
    """The objects that detections are held against.

    Attributes:
        class_names: K names, each another.
        heights: (I,) pixels.
        widths: (I,) pixels.
        images: (A,) in [1, I].
        classes: (A,) in [1, K].
        boxes: (A, 4) x, y, width, height; pixels.
        areas: (A,) square pixels, which tell small, medium and large objects.
        crowd: (A,) which are neither to be found nor wrong to be found.
        masks: A masks; None where they are not asked for.
    """

    class_names: Sequence[str]
    heights: Integers
    widths: Integers
    images: Integers
    classes: Integers
    boxes: Floats
    areas: Floats
    crowd: Flags
    masks: Sequence[Mask] | None = None


def ground_truth_of(index: AnnotationIndex, *, with_masks: bool) -> GroundTruth | None:
    """Take the objects of a data set.

    Of a COCO-style set all count, as they stand in the file, those that training drops too (boxes without a
    size, or outside their image), as in COCO's own evaluation.

    Of other sets boxes are clipped to their images, and areas are those of the boxes. What is not to be
    counted becomes a crowd, COCO's only way to say so: CrowdHuman's regions to ignore, and VOC's difficult
    objects. For the latter COCO's rule is a little milder than VOC's: a detection also counts as on a
    difficult object when it covers little of it but lies inside.

    A crowd of every class (label K) becomes one of each.

    Returns:
        The objects; None where the set has no annotations.
    """
    columns = index.columns
    if not len(columns["labels"]):
        return None
    image = np.repeat(np.arange(len(index)), np.diff(columns["annotation_offsets"]))
    everything = GroundTruth(
        class_names=index.class_names,
        heights=index.heights,
        widths=index.widths,
        images=image + 1,
        classes=columns["labels"] + 1,
        boxes=columns["xywh"],
        areas=columns["areas"],
        crowd=columns["crowd"],
        masks=_masks(index, image) if with_masks else None,
    )
    if index.kind == "coco":
        return _spread(everything)
    limits = np.stack([index.widths, index.heights], axis=1)[image]
    starts = columns["xywh"][:, :2]
    ends = (starts + columns["xywh"][:, 2:]).clip(0, limits)
    boxes = np.concatenate([starts.clip(0, limits), ends - starts.clip(0, limits)], axis=1)
    crowd = columns["crowd"] | columns["difficult"]
    return _spread(replace(everything, boxes=boxes, areas=boxes[:, 2] * boxes[:, 3], crowd=crowd))


def _spread(truth: GroundTruth) -> GroundTruth:
    """Put a crowd of each class in place of one that is of every class."""
    num_classes = len(truth.class_names)
    is_of_all = truth.classes == num_classes + 1
    if not is_of_all.any():
        return truth
    rows = np.repeat(np.arange(len(truth.classes)), np.where(is_of_all, num_classes, 1))
    classes = truth.classes[rows]
    classes[is_of_all[rows]] = np.tile(np.arange(1, num_classes + 1), int(is_of_all.sum()))
    return replace(
        truth,
        images=truth.images[rows],
        classes=classes,
        boxes=truth.boxes[rows],
        areas=truth.areas[rows],
        crowd=truth.crowd[rows],
        masks=None if truth.masks is None else [truth.masks[row] for row in rows.tolist()],
    )


def _masks(index: AnnotationIndex, image: Integers) -> list[Mask]:
    masks: list[Mask] = []
    for row, i in enumerate(image.tolist()):
        mask = index.mask(i, row)
        if isinstance(mask, RunLengths):
            masks.append({"size": [mask.height, mask.width], "counts": mask.counts})
        else:
            masks.append(mask or ())
    return masks


def numbered(index: AnnotationIndex, found: Predictions) -> Predictions:
    """Give D detections the numbers that images and classes have in the ground truth of `index`.

    Raises:
        ValueError: `found` names an image or a category that `index` does not have.
    """
    return replace(
        found,
        image_ids=places_of(found.image_ids, index.image_ids, "image", index) + 1,
        category_ids=places_of(found.category_ids, np.array(index.category_ids), "category", index) + 1,
    )
