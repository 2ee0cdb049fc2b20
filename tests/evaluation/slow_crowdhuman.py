"""CrowdHuman's metrics with loops, for comparison."""

from __future__ import annotations

import itertools
import math

from lgd.data.index import AnnotationIndex
from tests.evaluation.slow_voc import iou

RATES = (0.01, 0.0178, 0.0316, 0.0562, 0.1, 0.1778, 0.3162, 0.5623, 1.0)


def part_inside(a, b) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(width, 0) * max(height, 0) / ((a[2] - a[0]) * (a[3] - a[1]))


def images_of(index: AnnotationIndex, results):
    """(detections with scores, objects, regions) of each image."""
    for i in range(len(index)):
        limits = (index.widths[i], index.heights[i], index.widths[i], index.heights[i])
        boxes = [tuple(min(max(x, 0), m) for x, m in zip(box, limits, strict=True)) for box in index.boxes(i)]
        objects = [box for box, ignore in zip(boxes, index.crowd(i), strict=True) if not ignore]
        regions = [box for box, ignore in zip(boxes, index.crowd(i), strict=True) if ignore]
        found = [
            ((x, y, x + w, y + h), r["score"])
            for r in results
            if r["image_id"] == index.image_ids[i]
            for x, y, w, h in [r["bbox"]]
        ]
        yield sorted(found, key=lambda each: -each[1]), objects, regions


def outcomes(index: AnnotationIndex, results) -> tuple[list[bool], int]:
    """Right or wrong of each detection that counts, best first, and the number of objects."""
    judged, num_objects = [], 0
    for found, objects, regions in images_of(index, results):
        num_objects += len(objects)
        free = list(objects)
        for box, score in found:
            best = max(free, key=lambda each: iou(box, each), default=None)
            if best is not None and iou(box, best) > 0.5:
                free.remove(best)
                judged.append((score, True))
            elif not any(part_inside(box, region) > 0.5 for region in regions):
                judged.append((score, False))
    return [hit for _, hit in sorted(judged, key=lambda each: -each[0])], num_objects


def slow_miss_rate(index: AnnotationIndex, results) -> float:
    hits, num_objects = outcomes(index, results)
    logarithms = []
    for rate in RATES:
        num_hits = num_wrong = 0
        for hit in hits:
            num_hits, num_wrong = num_hits + hit, num_wrong + (not hit)
            if num_wrong / len(index) >= rate:
                break
        logarithms.append(math.log(1 - num_hits / num_objects))
    return math.exp(sum(logarithms) / len(RATES))


def slow_average_precision(index: AnnotationIndex, results) -> float:
    hits, num_objects = outcomes(index, results)
    points, num_hits = [], 0
    for number, hit in enumerate(hits, start=1):
        num_hits += hit
        points.append((num_hits / num_objects, num_hits / number))
    points = [(0.0, points[0][1]), *points]
    return sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in itertools.pairwise(points))


def most_pairs(found, objects) -> int:
    """Size of the largest matching, by trying for every detection all chains of exchanges."""
    detection_of = {}

    def place(d: int, tried: set[int]) -> bool:
        for g, each in enumerate(objects):
            if g not in tried and iou(found[d][0], each) >= 0.5:
                tried.add(g)
                if g not in detection_of or place(detection_of[g], tried):
                    detection_of[g] = d
                    return True
        return False

    return sum(place(d, set()) for d in range(len(found)))


def slow_jaccard_index(index: AnnotationIndex, results) -> float:
    """Only for sets without regions to ignore: with them the matching chosen among the largest matters."""
    means = []
    for tenths in range(10):
        ratios = []
        for found, objects, _ in images_of(index, results):
            kept = [each for each in found if each[1] > tenths / 10]
            pairs = most_pairs(kept, objects)
            if kept or objects:
                ratios.append(pairs / (len(kept) + len(objects) - pairs))
        means.append(sum(ratios) / len(ratios))
    return max(means)
