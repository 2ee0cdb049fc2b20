"""VOC's AP with loops, for comparison."""

from __future__ import annotations

from lgd.data.index import AnnotationIndex


def iou(a, b) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0) * max(height, 0)
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)


def slow_ap(index: AnnotationIndex, results, label: int) -> tuple[float, float] | None:
    """Area and 11-point AP of one class, in [0, 1]."""
    objects = {}
    for i in range(len(index)):
        for box, k, difficult in zip(index.boxes(i), index.labels(i), index.difficult(i), strict=True):
            if k == label:
                objects.setdefault(int(index.image_ids[i]), []).append([box, bool(difficult), False])
    num_objects = sum(not each[1] for image in objects.values() for each in image)
    if num_objects == 0:
        return None
    curve, num_hits, num_wrong = [], 0, 0
    of_class = [r for r in results if r["category_id"] == index.category_ids[label]]
    for result in sorted(of_class, key=lambda r: -r["score"]):
        x, y, width, height = result["bbox"]
        best, most = None, 0.5
        for each in objects.get(result["image_id"], []):
            if iou((x, y, x + width, y + height), each[0]) > most:
                best, most = each, iou((x, y, x + width, y + height), each[0])
        if best is not None and best[1]:
            continue
        if best is None or best[2]:
            num_wrong += 1
        else:
            best[2] = True
            num_hits += 1
        curve.append((num_hits, num_hits / (num_hits + num_wrong)))
    area = 0.0
    for wanted in range(1, num_objects + 1):
        area += max((p for hits, p in curve if hits >= wanted), default=0.0) / num_objects
    points = [
        max((p for hits, p in curve if 10 * hits >= tenths * num_objects), default=0.0)
        for tenths in range(11)
    ]
    return area, sum(points) / 11
