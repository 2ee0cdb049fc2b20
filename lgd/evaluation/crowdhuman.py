"""CrowdHuman's metrics, as its public toolkit computes them: AP50, log-average miss rate (mMR) and JI.

Ground truth is clipped to its image, as detections are. Regions to ignore are no objects, and what lies in
them is not wrong.

Legend: I images; D detections, best first, G objects and R regions to ignore of an image; T = 10 thresholds.
"""

from __future__ import annotations

import numpy as np

from lgd.data.index import AnnotationIndex, Flags, Floats, Integers
from lgd.evaluation.coco import Metrics
from lgd.evaluation.overlaps import Found, box_coverage, box_iou, clipped_boxes, found_by_image
from lgd.evaluation.predictions import Predictions

CROWDHUMAN_METRICS = ("AP50", "mMR", "JI")

_OVERLAP = 0.5
_FALSE_POSITIVES_PER_IMAGE = np.array([0.01, 0.0178, 0.0316, 0.0562, 0.1, 0.1778, 0.3162, 0.5623, 1.0])
"""Nine points evenly spaced in the logarithm, rounded as in the toolkit."""

_PERSON = 1
"""The category id of the one class that these sets have; a run may have further ones."""

_SCORES = np.arange(10) / 10


def evaluate_crowdhuman(index: AnnotationIndex, predictions: Predictions) -> Metrics:
    """Measure AP50, mMR and JI.

    Args:
        index: the data set, with annotations; annotations marked as crowds are regions to ignore.
        predictions: detections of all images; those of other classes than `person` do not count.

    Returns:
        In percent; None where there is no object:
        AP50: area under precision over recall, by trapezoids, at IoU 0.5.
        mMR: miss rate (lower is better), the geometric mean over nine rates of false positives per image from
            0.01 to 1 (Dollar et al., "Pedestrian detection: an evaluation of the state of the art", 2012).
        JI: Jaccard index of the sets of detections and objects, matched one to one, averaged over images,
            at the best of the score thresholds 0, 0.1, ..., 0.9 (Chu et al., "Detection in crowded scenes",
            2020).

    Raises:
        ValueError: `predictions` names an image or a category that `index` does not have.
    """
    scores, hits, ratios = [], [], []
    num_objects = 0
    person = index.category_ids.index(_PERSON) if _PERSON in index.category_ids else -1
    for i, found_of_all in enumerate(found_by_image(index, predictions)):
        found = found_of_all.of_class(person)
        boxes, ignored = clipped_boxes(index, i), index.crowd(i)
        objects, regions = boxes[~ignored], boxes[ignored]
        num_objects += len(objects)
        counted, hit = _match(found, objects, regions)
        scores.append(found.scores[counted])
        hits.append(hit[counted])
        ratios.append(_jaccard_index(found, objects, regions))
    if num_objects == 0:
        return dict.fromkeys(CROWDHUMAN_METRICS)
    order = np.argsort(-np.concatenate(scores), kind="stable")
    hit = np.concatenate(hits)[order]
    return {
        "AP50": 100 * _average_precision(hit, num_objects),
        "mMR": 100 * _miss_rate(hit, num_objects, len(index)),
        "JI": 100 * _best_mean(np.array(ratios)),
    }


def _match(found: Found, objects: Floats, regions: Floats) -> tuple[Flags, Flags]:
    """Give each detection, best first, the free object that it overlaps most, above IoU 0.5.

    Returns:
        (D,) which detections count, which is all but those on no object whose larger part lies in a region to
        ignore; and (D,) which have an object.
    """
    iou = box_iou(found.boxes, objects)
    hit = np.zeros(len(found.boxes), dtype=np.bool_)
    # Most detections overlap no object enough, and need no turn.
    for d in np.flatnonzero((iou > _OVERLAP).any(axis=1)):
        best = iou[d].argmax()
        if iou[d, best] > _OVERLAP:
            hit[d] = True
            iou[:, best] = 0
    return hit | ~_in_region(found.boxes, regions), hit


def _in_region(boxes: Floats, regions: Floats) -> Flags:
    """Which of (D, 4) boxes lie in a region to ignore with their larger part: (D,)."""
    inside: Flags = np.any(box_coverage(boxes, regions) > _OVERLAP, axis=1)
    return inside


def _average_precision(hit: Flags, num_objects: int) -> float:
    """Area under precision over recall of all detections, best first.

    The toolkit starts at the first detection; we start at recall 0 with its precision, which adds at most one
    object's share: nothing on CrowdHuman, but all there is in a set of one object.
    """
    if len(hit) == 0:
        return 0.0
    num_hits = np.cumsum(hit)
    recall, precision = num_hits / num_objects, num_hits / np.arange(1, len(hit) + 1)
    before = np.concatenate([precision[:1], precision[:-1]])
    return float(np.sum(np.diff(recall, prepend=0) * (precision + before) / 2))


def _miss_rate(hit: Flags, num_objects: int, num_images: int) -> float:
    """Geometric mean of the miss rates where the false positives per image first reach the nine rates.

    Where they never do, the miss rate of all detections counts.
    """
    if len(hit) == 0:
        return 1.0
    missed = 1 - np.cumsum(hit) / num_objects
    false_positives = np.cumsum(~hit) / num_images
    reached = np.searchsorted(false_positives, _FALSE_POSITIVES_PER_IMAGE, side="left")
    with np.errstate(divide="ignore"):  # Where nothing is missed the mean is 0.
        return float(np.exp(np.log(missed[reached.clip(max=len(hit) - 1)]).mean()))


def _jaccard_index(found: Found, objects: Floats, regions: Floats) -> Floats:
    """Jaccard index of one image for the detections above each of T scores.

    As many detections as possible are matched with an object each (IoU at least 0.5). Unmatched detections
    and objects whose larger part lies in a region to ignore do not count.

    Returns:
        (T,) in [0, 1], NaN where nothing counts.
    """
    overlaps = box_iou(found.boxes, objects) >= _OVERLAP
    detection_in_region, object_in_region = _in_region(found.boxes, regions), _in_region(objects, regions)
    numbers: Integers = np.searchsorted(-found.scores, -_SCORES, side="left")
    ratio_of = {
        n: _ratio(overlaps[:n], detection_in_region[:n], object_in_region) for n in set(numbers.tolist())
    }
    return np.array([ratio_of[n] for n in numbers.tolist()])


def _best_mean(ratios: Floats) -> float:
    """The largest of T means over the images (I, T) that count there."""
    counts = (~np.isnan(ratios)).sum(axis=0)
    return float((np.nansum(ratios, axis=0) / counts.clip(min=1)).max())


def _ratio(overlaps: Flags, detection_in_region: Flags, object_in_region: Flags) -> float:
    """Matched pairs over detections and objects together, from (D, G) which may be matched."""
    # SciPy is slow to import, and few data sets are scored so.
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import maximum_bipartite_matching

    matched_object = np.full(len(detection_in_region), -1)
    if overlaps.any():
        matched_object = maximum_bipartite_matching(csr_matrix(overlaps), perm_type="column")
    is_matched = matched_object >= 0
    num_pairs = int(is_matched.sum())
    num_detections = len(is_matched) - int((detection_in_region & ~is_matched).sum())
    unmatched_objects = np.delete(object_in_region, matched_object[is_matched])
    num_objects = len(object_in_region) - int(unmatched_objects.sum())
    together = num_detections + num_objects - num_pairs
    return num_pairs / together if together else np.nan
