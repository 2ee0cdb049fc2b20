"""Matching anchors to objects by overlap, for a whole batch of padded objects at once.

Legend: B images, N object slots per image, A anchors.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lgd.ops.boxes import box_iou

FOREGROUND, BACKGROUND, IGNORED = 1, 0, -1

_MAX_PAIRS = 2**24
"""Overlaps taken at a time (64 MiB in float32, some eight of which are held at once), so that crowded images
don't exhaust the memory."""


@dataclass(frozen=True)
class Matches:
    """Which object each anchor answers for.

    Attributes:
        indices: (B, A) int64, the object slot of largest overlap (the first one on a tie);
            without meaning where `labels` is not FOREGROUND.
        labels: (B, A) int8, FOREGROUND, BACKGROUND or IGNORED.
    """

    indices: Tensor
    labels: Tensor


@torch.no_grad()
def match_anchors(
    boxes: Tensor,
    valid: Tensor,
    anchors: Tensor,
    *,
    thresholds: tuple[float, float],
    allow_low_quality: bool,
) -> Matches:
    """Match by overlap, as Faster R-CNN (arXiv 1506.01497, section 3.1.2).

    An anchor is BACKGROUND where its best overlap is below the first threshold, FOREGROUND from the second
    on, IGNORED between. With `allow_low_quality` an anchor whose overlap equals some object's best overlap
    (above 0) is FOREGROUND too, whatever its overlap; it still answers for its own best object.

    Args:
        boxes: (B, N, 4) xyxy.
        valid: (B, N) bool, which slots hold an object.
        anchors: (A, 4) xyxy, the same for all images, or (B, A, 4).
        thresholds: (low, high) with 0 < low <= high.
        allow_low_quality: keep the best anchors of every object.

    Returns:
        The matches. Anchors of images without objects are BACKGROUND.
    """
    # Boxes without area overlap nothing, so that unused slots drop out without a mask on the pairs.
    boxes = torch.where(valid[..., None], boxes, 0)
    num_images, num_anchors = boxes.shape[0], anchors.shape[-2]
    best = boxes.new_zeros(num_images, num_anchors)
    indices = torch.zeros_like(best, dtype=torch.int64)
    rescued = torch.zeros_like(best, dtype=torch.bool)
    chunk_size = max(1, _MAX_PAIRS // (num_images * num_anchors))
    for start in range(0, boxes.shape[1], chunk_size):
        overlaps = box_iou(boxes[:, start : start + chunk_size], anchors)
        chunk_best, chunk_indices = overlaps.max(dim=1)
        better = chunk_best > best
        best = torch.where(better, chunk_best, best)
        indices = torch.where(better, chunk_indices + start, indices)
        if allow_low_quality:
            per_object = overlaps.amax(dim=2, keepdim=True)
            rescued |= ((overlaps == per_object) & (per_object > 0)).any(dim=1)
    low, high = thresholds
    labels = torch.where(best < low, BACKGROUND, torch.where(best < high, IGNORED, FOREGROUND))
    labels = torch.where(rescued, FOREGROUND, labels)
    return Matches(indices, labels.to(torch.int8))
