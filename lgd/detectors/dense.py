"""What the detectors that predict at every cell of the feature maps share.

Legend: B images, P positions that predict (anchors or locations) of one level, A of all levels, K classes,
T candidates.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lgd.detectors.detections import keep_best_of_images, rows_to_images, to_original_sizes
from lgd.structures import Batch, Detections, Features


@dataclass(frozen=True)
class Candidates:
    """The best scores of a batch: image by image, within it level by level, within that best first.

    Attributes:
        counts: of each of the B images.
        positions: (T,) int64 in [0, A).
        labels: (T,) int64 in [0, K).
        scores: (T,) in [0, 1].
    """

    counts: Sequence[int]
    positions: Tensor
    labels: Tensor
    scores: Tensor

    @property
    def images(self) -> Tensor:
        """(T,) int64 in [0, B), the image of each."""
        return rows_to_images(self.counts, self.scores.device)


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


def join_pyramids(pyramids: Sequence[Features]) -> Features:
    """Concatenate features of the same levels and shapes along the batch, so that a head runs once on all.

    Nothing in a head looks beyond its image (group norm is per image), so each gets the numbers it would get
    alone.
    """
    if len(pyramids) == 1:
        return pyramids[0]
    return {level: torch.cat([features[level] for features in pyramids]) for level in pyramids[0]}


def select_candidates(
    levels: Iterable[Tensor], *, score_threshold: float, limits: Sequence[int], stable: bool = True
) -> Candidates:
    """Choose the best scores of each level of each image, with one host sync a level and one more.

    Args:
        levels: (B, P, K) scores of each level.
        score_threshold: only scores above it.
        limits: of each level, at most so many of an image.
        stable: equals by position and label; else as torch's quicker sort leaves them. They are common where
            the teacher's features are flat, and NMS keeps the first of them.
    """
    above, bounds, offset = [], [], 0
    for scores in levels:
        images, positions, labels = (scores > score_threshold).nonzero(as_tuple=True)
        above.append((positions + offset, labels, scores[images, positions, labels]))
        bounds.append(torch.searchsorted(images, torch.arange(len(scores) + 1, device=images.device)))
        offset += scores.shape[1]
    parts = []
    for ends in torch.stack(bounds, dim=1).unfold(0, 2, 1).tolist():
        for (positions, labels, scores), (start, stop), limit in zip(above, ends, limits, strict=True):
            order = scores[start:stop].sort(descending=True, stable=stable).indices[:limit] + start
            parts.append((positions[order], labels[order], scores[order]))
    return _join(parts, len(limits))


def select_as_reference(
    levels: Iterable[Tensor], *, score_threshold: float, limits: Sequence[int]
) -> Candidates:
    """`select_candidates` with the order of equal scores that the reference's FCOS leaves.

    It sorts all scores of the level, unstably, and applies the threshold to the best of them.
    """
    every = list(levels)
    parts = []
    for image in range(len(every[0])):
        offset = 0
        for scores, limit in zip(every, limits, strict=True):
            chosen, order = scores[image].flatten().sort(descending=True)
            chosen, order = chosen[:limit], order[:limit]
            above = chosen > score_threshold
            chosen, order = chosen[above], order[above]
            num_classes = scores.shape[2]
            parts.append((order // num_classes + offset, order % num_classes, chosen))
            offset += scores.shape[1]
    return _join(parts, len(limits))


def _join(parts: Sequence[tuple[Tensor, Tensor, Tensor]], num_levels: int) -> Candidates:
    """Candidates from the positions, labels and scores of each level of each image."""
    counts = [len(scores) for _, _, scores in parts]
    per_image = [sum(counts[start : start + num_levels]) for start in range(0, len(counts), num_levels)]
    return Candidates(per_image, *(torch.cat(columns) for columns in zip(*parts, strict=True)))


def suppress(
    boxes: Tensor, candidates: Candidates, batch: Batch, *, nms_threshold: float | None, limit: int
) -> list[Detections]:
    """Suppress the candidates within each image and class, and bring them to their image's original size.

    Args:
        boxes: (T, 4) xyxy, pixels of the canvas.
        candidates: whose boxes they are.
        batch: with the sizes.
        nms_threshold: overlap within a class above which the worse box goes; None keeps all.
        limit: at most so many detections of an image, before boxes outside the image are dropped.
    """
    scores, labels = candidates.scores, candidates.labels
    kept, counts = keep_best_of_images(
        boxes, scores, labels, candidates.counts, nms_threshold=nms_threshold, limit=limit
    )
    return to_original_sizes(Detections(boxes[kept], scores[kept], labels[kept]), counts, batch)
