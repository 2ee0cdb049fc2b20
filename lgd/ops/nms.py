"""Non-maximum suppression.

Legend: B images, T candidates of each, S survivors of each.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import batched_nms, nms

from lgd.ops.predictions import take_best

_FAR = 1e6
"""Pixels: boxes that reach further are cut there before they are compared, so that areas are numbers."""

_MAX_TOGETHER, _MAX_TOGETHER_ON_CPU = 25_000, 1000
"""Boxes of several groups that one call compares; with more, a call for each group costs less."""


def nms_per_class(boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float) -> Tensor:
    """Greedy suppression among boxes of the same class, as torchvision does it.

    Up to some 1,000 boxes it moves the classes apart by an offset, at the cost of the coordinates' last
    digits; where there are negative coordinates, classes may meet, and an infinite one ends all suppression.

    Args:
        boxes: (D, 4) xyxy.
        scores: (D,).
        labels: (D,) int64.
        iou_threshold: a box goes where it overlaps a better one of its class by more than this.

    Returns:
        Indices of the boxes kept, best first.
    """
    kept: Tensor = batched_nms(boxes, scores, labels, iou_threshold)
    return kept


def keep_best(
    boxes: Tensor, scores: Tensor, groups: Tensor, num_groups: int, iou_threshold: float | None, limit: int
) -> tuple[Tensor, Tensor]:
    """Suppress within the groups of each image, and keep the best of the image; no size depends on a value.

    Args:
        boxes: (B, T, 4) xyxy.
        scores: (B, T); -inf for candidates that don't count.
        groups: (B, T) int64 in [0, num_groups), or (T,), the same for every image.
        num_groups: so many.
        iou_threshold: a box goes where it overlaps a better one of its image and group by more than this; of
            equally good ones the first is the better. None keeps all.
        limit: survivors of an image at most.

    Returns:
        indices: (B, S) int64 in [0, T), best first (the first one first on a tie), S = min(limit, T).
        valid: (B, S) bool, which slots hold a survivor.
    """
    if iou_threshold is not None:
        near = boxes.clamp(-_FAR, _FAR)
        survives = find_survivors(near, scores, groups.expand_as(scores), num_groups, iou_threshold, limit)
        scores = torch.where(survives, scores, -torch.inf)
    scores, indices = take_best(scores, limit)
    return indices, scores > -torch.inf


def keep_best_by_image(
    boxes: Tensor, scores: Tensor, groups: Tensor, num_groups: int, iou_threshold: float | None, limit: int
) -> tuple[Tensor, Tensor]:
    """`keep_best` image by image, with the reference's order of equal scores: as torchvision leaves them.

    For comparisons: slower, and which of equal candidates survive the limit hangs on torch and the processor.
    """
    if iou_threshold is None:
        return keep_best(boxes, scores, groups, num_groups, None, limit)
    groups = groups.expand_as(scores)
    indices = torch.zeros(len(boxes), min(limit, boxes.shape[1]), dtype=torch.int64, device=boxes.device)
    valid = torch.zeros_like(indices, dtype=torch.bool)
    for image in range(len(boxes)):
        counted = (scores[image] > -torch.inf).nonzero().squeeze(1)
        kept = nms_per_class(
            boxes[image, counted], scores[image, counted], groups[image, counted], iou_threshold
        )
        kept = kept[:limit]
        indices[image, : len(kept)] = counted[kept]
        valid[image, : len(kept)] = True
    return indices, valid


@torch.library.custom_op("lgd::find_survivors", mutates_args=())
def find_survivors(
    boxes: Tensor, scores: Tensor, groups: Tensor, num_groups: int, iou_threshold: float, limit: int
) -> Tensor:
    """Tell which boxes of each image and group no better one suppresses.

    An operator of its own, so that an exporter may put a runtime's own in its place (`lgd.export`).

    Args:
        boxes: (B, T, 4) xyxy, finite where they count.
        scores: (B, T); -inf for boxes that don't count.
        groups: (B, T) int64 in [0, num_groups).
        num_groups: so many.
        iou_threshold: a box goes where it overlaps a better one of its image and group by more than this.
        limit: of each image so many, the best, matter; what is said of others may be wrong.

    Returns:
        (B, T) bool, False for boxes that don't count.
    """
    images, rows = (scores > -torch.inf).nonzero(as_tuple=True)
    apart = images * num_groups + groups[images, rows]
    survives = torch.zeros_like(scores, dtype=torch.bool)
    together = len(rows) <= _max_together(boxes.device)
    parts = [slice(None)] if together else [images == image for image in range(len(boxes))]
    for part in parts:
        image, row = images[part], rows[part]
        kept = _suppress(boxes[image, row], scores[image, row], apart[part], iou_threshold)
        survives[image[kept], row[kept]] = True
    return survives


@find_survivors.register_fake
def _(
    boxes: Tensor, scores: Tensor, groups: Tensor, num_groups: int, iou_threshold: float, limit: int
) -> Tensor:
    return torch.empty_like(scores, dtype=torch.bool)


def _max_together(device: torch.device) -> int:
    return _MAX_TOGETHER_ON_CPU if device.type == "cpu" else _MAX_TOGETHER


def _suppress(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    """Indices of those of R boxes (R, 4) that survive."""
    if len(boxes) == 0:
        return groups
    if len(boxes) <= _max_together(boxes.device):
        # In float64 moving float32 boxes apart costs them no digit that matters.
        boxes = boxes.double()
        span = boxes.max() - boxes.min() + 1
        kept: Tensor = nms(boxes + (groups * span)[:, None], scores.double(), iou_threshold)
        return kept
    order = groups.argsort(stable=True)
    counts = torch.unique_consecutive(groups[order], return_counts=True)[1].tolist()
    parts = [part[nms(boxes[part], scores[part], iou_threshold)] for part in torch.split(order, counts)]
    return torch.cat(parts)
