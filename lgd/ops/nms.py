"""Non-maximum suppression.

Legend: B images, T candidates of each, S survivors of each.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from lgd.ops.predictions import take_best


def nms_per_class(boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float) -> Tensor:
    """Greedy suppression among boxes of the same class.

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
    boxes: Tensor, scores: Tensor, groups: Tensor, num_groups: int, iou_threshold: float, limit: int
) -> tuple[Tensor, Tensor]:
    """Suppress within the groups of each image, and keep the best of the image; no loop over images.

    Args:
        boxes: (B, T, 4) xyxy.
        scores: (B, T); -inf for candidates that don't count.
        groups: (T,) int64 in [0, num_groups), the same for every image.
        num_groups: so many.
        iou_threshold: a box goes where it overlaps a better one of its image and group by more than this.
        limit: survivors of an image at most.

    Returns:
        indices: (B, S) int64 in [0, T), best first (the first one first on a tie), S = min(limit, T).
        valid: (B, S) bool, which slots hold a survivor.
    """
    counted = scores > -torch.inf
    # Boxes without area suppress nothing.
    boxes = torch.where(counted[..., None], boxes, 0)
    images = torch.arange(len(boxes), device=boxes.device)[:, None]
    apart = (images * num_groups + groups).flatten()
    # A host sync, the only one: how many boxes survive shows only on the device.
    kept = nms_per_class(boxes.flatten(0, 1), scores.flatten(), apart, iou_threshold)
    survives = torch.zeros_like(counted).flatten().index_fill(0, kept, True).view_as(counted)
    scores, indices = take_best(torch.where(survives, scores, -torch.inf), limit)
    return indices, scores > -torch.inf


def keep_best_by_image(
    boxes: Tensor, scores: Tensor, groups: Tensor, num_groups: int, iou_threshold: float, limit: int
) -> tuple[Tensor, Tensor]:
    """`keep_best` image by image, with the reference's order of equal scores: as torchvision leaves them.

    For comparisons: slower, and which of equal candidates survive the limit hangs on torch and the processor.
    """
    indices = torch.zeros(len(boxes), min(limit, boxes.shape[1]), dtype=torch.int64, device=boxes.device)
    valid = torch.zeros_like(indices, dtype=torch.bool)
    for image in range(len(boxes)):
        counted = (scores[image] > -torch.inf).nonzero().squeeze(1)
        kept = nms_per_class(boxes[image, counted], scores[image, counted], groups[counted], iou_threshold)
        kept = kept[:limit]
        indices[image, : len(kept)] = counted[kept]
        valid[image, : len(kept)] = True
    return indices, valid
