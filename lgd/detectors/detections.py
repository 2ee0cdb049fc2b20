"""From the boxes of a batch's candidates to the detections of each image.

Legend: B images, T candidates of each, D slots of each for detections.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lgd.ops.boxes import clip_boxes, scale_boxes
from lgd.ops.nms import keep_best, keep_best_by_image
from lgd.ops.predictions import take_best, take_rows
from lgd.structures import Batch, PaddedDetections


@dataclass(frozen=True)
class SelectionLimits:
    """What becomes of candidates.

    Attributes:
        num_classes: K.
        nms_threshold: overlap within a class above which the worse box goes; None keeps all.
        num_detections: D, at most so many of an image, before boxes outside the image are dropped.
        reference_order: leave the order of equal scores to torchvision's sorting, as the reference.
    """

    num_classes: int
    nms_threshold: float | None
    num_detections: int
    reference_order: bool = False


def keep_detections(
    boxes: Tensor, scores: Tensor, labels: Tensor, limits: SelectionLimits
) -> PaddedDetections:
    """Suppress the candidates within each image and class and keep the best; boxes stay where they are.

    Args:
        boxes: (B, T, 4) xyxy, pixels of the canvas; those with a NaN don't count.
        scores: (B, T), or their logits; -inf for candidates that don't count.
        labels: (B, T) int64.
        limits: which to keep.

    Returns:
        The detections, boxes in pixels of the canvas and not clipped, scores as they were given; D is the
        smaller of num_detections and T.
    """
    scores = torch.where(boxes.isnan().any(dim=-1), -torch.inf, scores)
    keep = keep_best_by_image if limits.reference_order else keep_best
    indices, valid = keep(
        boxes, scores, labels, limits.num_classes, limits.nms_threshold, limits.num_detections
    )
    found = PaddedDetections(
        take_rows(boxes, indices), scores.gather(1, indices), labels.gather(1, indices), valid
    )
    return _empty_unused(found)


def to_original_sizes(found: PaddedDetections, batch: Batch) -> PaddedDetections:
    """Bring boxes from the canvas to their image's original size, clip them, and drop those outside of it."""
    scale = batch.original_sizes.to(found.boxes.dtype) / batch.sizes.to(found.boxes.dtype)
    boxes = clip_boxes(scale_boxes(found.boxes, scale[:, None]), batch.original_sizes[:, None])
    valid = found.valid & ((boxes[..., 2:] - boxes[..., :2]) > 0).all(dim=-1)
    # Those dropped leave gaps. The sorting closes them; the order of the others is that of their scores.
    scores, order = take_best(torch.where(valid, found.scores, -torch.inf), found.scores.shape[1])
    masks = found.masks
    if masks is not None:
        masks = masks[torch.arange(masks.shape[0], device=order.device)[:, None], order]
    return _empty_unused(
        PaddedDetections(
            take_rows(boxes, order), scores, found.labels.gather(1, order), scores > -torch.inf, masks
        )
    )


def _empty_unused(found: PaddedDetections) -> PaddedDetections:
    """Zeros in the unused slots."""
    valid, masks = found.valid, found.masks
    return PaddedDetections(
        boxes=torch.where(valid[..., None], found.boxes, 0),
        scores=torch.where(valid, found.scores, 0),
        labels=torch.where(valid, found.labels, 0),
        valid=valid,
        masks=None if masks is None else torch.where(valid[..., None, None], masks, 0),
    )
