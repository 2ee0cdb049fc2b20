"""From the boxes found in a batch to the detections of each image.

On an accelerator every look at a number costs a wait for all that is under way, so the images are parted as
late and as few times as possible.

Legend: B images, R boxes of all of them, image by image.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from lgd.ops.boxes import clip_boxes, scale_boxes
from lgd.ops.nms import nms_per_class
from lgd.structures import Batch, Detections


def keep_best_of_images(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    counts: Sequence[int],
    *,
    nms_threshold: float | None,
    limit: int,
) -> tuple[Tensor, list[int]]:
    """Choose each image's best boxes: a host sync an image, in torchvision's NMS.

    (One call for all images would move their boxes apart by offsets that cost the float32 coordinates of many
    images and classes their last digits.)

    Args:
        boxes: (R, 4) xyxy.
        scores: (R,).
        labels: (R,) int64.
        counts: rows of each of the B images.
        nms_threshold: overlap within an image and class above which the worse box goes; None keeps all.
        limit: at most so many of an image.

    Returns:
        Indices in [0, R) of those to keep, image by image, best first; and how many each image keeps.
    """
    kept = []
    for start, stop in pairwise([0, *accumulate(counts)]):
        if nms_threshold is None:
            best = scores[start:stop].argsort(descending=True, stable=True)
        else:
            best = nms_per_class(boxes[start:stop], scores[start:stop], labels[start:stop], nms_threshold)
        kept.append(start + best[:limit])
    return torch.cat(kept), [len(each) for each in kept]


def to_original_sizes(found: Detections, counts: Sequence[int], batch: Batch) -> list[Detections]:
    """Bring boxes to their image's original size, drop those outside of it, and part the images.

    Args:
        found: R detections, boxes in pixels of the canvas.
        counts: rows of each of the B images.
        batch: with the sizes.

    Returns:
        The detections of each of the B images, in their order.
    """
    images = rows_to_images(counts, found.boxes.device)
    scale = batch.original_sizes.to(found.boxes.dtype) / batch.sizes.to(found.boxes.dtype)
    boxes = clip_boxes(scale_boxes(found.boxes, scale[images]), batch.original_sizes[images])
    rows = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(dim=1).nonzero().squeeze(1)
    bounds = pairwise([0, *accumulate(count_rows(images[rows], len(counts)))])
    masks = None if found.masks is None else found.masks[rows]
    boxes, scores, labels = boxes[rows], found.scores[rows], found.labels[rows]
    return [
        Detections(boxes[a:b], scores[a:b], labels[a:b], None if masks is None else masks[a:b])
        for a, b in bounds
    ]


def rows_to_images(counts: Sequence[int], device: torch.device) -> Tensor:
    """(R,) int64, the image of each row; the opposite of `count_rows`."""
    parts = [torch.full((count,), image, device=device) for image, count in enumerate(counts)]
    return torch.cat(parts)


def count_rows(images: Tensor, num_images: int) -> list[int]:
    """How many rows each image has, where `images` (R,) int64 are ascending: one host sync."""
    bounds = torch.searchsorted(images, torch.arange(num_images + 1, device=images.device))
    counts: list[int] = bounds.diff().tolist()
    return counts
