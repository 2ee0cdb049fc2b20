"""What the detectors that predict at every cell of the feature maps share.

Legend: P positions that predict (anchors or locations) of one level, K classes, T candidates, D detections.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lgd.ops.boxes import clip_boxes, scale_boxes
from lgd.ops.nms import nms_per_class
from lgd.structures import Batch, Detections


@dataclass(frozen=True)
class Candidates:
    """Boxes of one image before suppression.

    Attributes:
        boxes: (T, 4) xyxy, pixels of the canvas.
        scores: (T,) in [0, 1].
        labels: (T,) int64 in [0, K).
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor


def init_head(head: nn.Module, cls_score: nn.Conv2d, prior_prob: float) -> None:
    """Start a head: convolutions of deviation 0.01, biases 0, but every class score is `prior_prob`.

    Source: RetinaNet (arXiv 1708.02002, section 4.1).
    """
    for module in head.modules():
        if isinstance(module, nn.Conv2d):
            assert module.bias is not None
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)
    assert cls_score.bias is not None
    nn.init.constant_(cls_score.bias, -math.log((1 - prior_prob) / prior_prob))


def select_candidates(
    scores: Tensor, *, score_threshold: float, limit: int, stable: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Choose the best scores of one level of one image.

    Args:
        scores: (P, K).
        score_threshold: only scores above it.
        limit: at most so many.
        stable: equals by position and label; else as torch's quicker sort leaves them. They are common where
            the teacher's features are flat, and NMS keeps the first of them.

    Returns:
        Positions in [0, P), labels in [0, K) and scores, each (T,); best first.
    """
    positions, labels = (scores > score_threshold).nonzero(as_tuple=True)
    chosen, order = scores[positions, labels].sort(descending=True, stable=stable)
    order = order[:limit]
    return positions[order], labels[order], chosen[:limit]


def select_as_reference(
    scores: Tensor, *, score_threshold: float, limit: int
) -> tuple[Tensor, Tensor, Tensor]:
    """`select_candidates` with the order of equal scores that the reference's FCOS leaves.

    It sorts all scores of the level, unstably, and applies the threshold to the best of them.
    """
    chosen, order = scores.flatten().sort(descending=True)
    chosen, order = chosen[:limit], order[:limit]
    above = chosen > score_threshold
    chosen, order = chosen[above], order[above]
    num_classes = scores.shape[1]
    return order // num_classes, order % num_classes, chosen


def suppress(
    levels: Sequence[Candidates], batch: Batch, index: int, *, nms_threshold: float | None, limit: int
) -> Detections:
    """Join the candidates of all levels of image `index`, suppress, and bring them to its original size.

    Args:
        levels: candidates by level.
        batch: with the sizes.
        index: which image of it.
        nms_threshold: overlap within a class above which the worse box goes; None keeps all.
        limit: at most so many detections, before boxes outside the image are dropped.
    """
    boxes = torch.cat([level.boxes for level in levels])
    scores = torch.cat([level.scores for level in levels])
    labels = torch.cat([level.labels for level in levels])
    if nms_threshold is None:
        kept = scores.argsort(descending=True, stable=True)[:limit]
    else:
        kept = nms_per_class(boxes, scores, labels, nms_threshold)[:limit]
    original_size = batch.original_sizes[index]
    scale = original_size.to(boxes.dtype) / batch.sizes[index].to(boxes.dtype)
    boxes = clip_boxes(scale_boxes(boxes[kept], scale), original_size)
    nonempty = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(dim=1)
    return Detections(boxes[nonempty], scores[kept][nonempty], labels[kept][nonempty])
