"""Non-maximum suppression."""

from __future__ import annotations

from torch import Tensor
from torchvision.ops import batched_nms


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
