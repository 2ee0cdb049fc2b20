"""Objects that no detector can be credited with, since only so many detections of an image are counted."""

from __future__ import annotations

import numpy as np

from lgd.data.index import AnnotationIndex, Integers
from lgd.evaluation.coco import COCO_CAP
from lgd.words import counted


def say_out_of_reach(index: AnnotationIndex, cap: int) -> list[str]:
    """Say how many objects of a test set cannot be found, however good the detector is.

    Crowds and difficult objects do not count: they need not be found.

    Args:
        index: the test set.
        cap: TEST.DETECTIONS_PER_IMAGE.

    Returns:
        A line on what is kept of an image, and one on what COCO's metrics count, each only where it matters.
    """
    columns = index.columns
    image = np.repeat(np.arange(len(index)), np.diff(columns["annotation_offsets"]))
    counts = ~(columns["crowd"] | columns["difficult"])
    image, labels = image[counts], columns["labels"][counts]
    total = len(image)
    in_image = np.bincount(image, minlength=len(index))
    of_class = np.unique(image * len(index.class_names) + labels, return_counts=True)[1]
    lines = []
    if beyond := _beyond(in_image, cap):
        lines.append(
            f"{index.name}: {beyond} of {counted(total, 'object is', 'objects are')} out of reach: images "
            f"have up to {in_image.max()}, and TEST.DETECTIONS_PER_IMAGE {cap} are kept of each; set it to "
            f"{in_image.max()} or more"
        )
    if beyond := _beyond(of_class, COCO_CAP):
        beside = (
            f"AP@{cap} stands beside it"
            if cap > COCO_CAP
            else f"AP@N stands beside it with TEST.DETECTIONS_PER_IMAGE N above {COCO_CAP}"
        )
        lines.append(
            f"{index.name}: {beyond} of {counted(total, 'object is', 'objects are')} beyond the "
            f"{COCO_CAP} of a class and image that COCO's AP counts, at most {of_class.max()}; {beside} "
            "(TEST.BEST_METRIC chooses the best model)"
        )
    return lines


def _beyond(counts: Integers, cap: int) -> int:
    return int((counts - cap).clip(0).sum())
