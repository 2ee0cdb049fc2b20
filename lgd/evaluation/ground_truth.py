"""The ground truth of any data set in COCO's format, from its columns."""

from __future__ import annotations

from typing import Any

from lgd.data.index import AnnotationIndex
from lgd.evaluation.overlaps import clipped_boxes


def ground_truth_from_index(index: AnnotationIndex) -> dict[str, Any] | None:
    """Write the boxes of a data set as `evaluate_coco` takes them.

    What is not to be counted becomes a crowd, COCO's only way to say "neither to be found nor wrong to be
    found": CrowdHuman's regions to ignore, and VOC's difficult objects. For the latter COCO's rule is a
    little milder than VOC's: a detection also counts as on a difficult object when it covers little of it
    but lies inside.

    Args:
        index: the data set.

    Returns:
        images, categories and annotations, boxes clipped to their images and numbered from 1, areas those of
        the boxes; None where the set has no annotations.
    """
    if not len(index.columns["labels"]):
        return None
    images = [
        {"id": int(index.image_ids[i]), "width": int(index.widths[i]), "height": int(index.heights[i])}
        for i in range(len(index))
    ]
    annotations: list[dict[str, Any]] = []
    for i, image in enumerate(images):
        ignored = (index.crowd(i) | index.difficult(i)).tolist()
        labels = index.labels(i).tolist()
        for (x1, y1, x2, y2), label, ignore in zip(
            clipped_boxes(index, i).tolist(), labels, ignored, strict=True
        ):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image["id"],
                    "category_id": index.category_ids[label],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": int(ignore),
                }
            )
    categories = [
        {"id": category_id, "name": name}
        for category_id, name in zip(index.category_ids, index.class_names, strict=True)
    ]
    return {"images": images, "categories": categories, "annotations": annotations}
