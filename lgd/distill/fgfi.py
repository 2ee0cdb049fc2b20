"""Fine-grained feature imitation: a student that imitates a pretrained teacher near the objects.

The teacher-based method that label-guided self-distillation is held against.

Source: Distilling Object Detectors with Fine-grained Feature Imitation (arXiv 1906.03609, section 3).
Legend: B images on a canvas H x W, L levels of C x h x w, N object slots, R anchors of one cell, A anchors of
all levels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lgd.detectors.protocol import Detector
from lgd.distill.imitation import ImitatingStudent
from lgd.layers.conv import Conv2d
from lgd.ops.anchors import cell_anchors, grid_anchors
from lgd.ops.boxes import box_iou
from lgd.structures import Batch, Features, Targets
from lgd.words import counted

_MAX_PAIRS = 2**25
"""Overlaps held at a time (128 MiB in float32), so that crowded images don't exhaust the memory."""


class FeatureImitation(ImitatingStudent):
    """Trains a detector and pulls its features near objects to those of a pretrained, fixed detector.

    Args:
        student: any detector.
        teacher: a trained detector with the student's levels.
        anchor_sizes: square roots of the anchors' areas in pixels by level, or one row for every level.
        aspect_ratios: height / width of the anchors by level, or one row for every level.
        iou_ratio: a cell counts where one of its anchors overlaps an object by more than this share of the
            object's best overlap, in [0, 1] (psi of the paper).
        weight: factor of the imitation loss (lambda of the paper).

    Raises:
        ValueError: the teacher has other levels than the student, or the anchors don't fit the levels.
    """

    def __init__(
        self,
        *,
        student: Detector,
        teacher: Detector,
        anchor_sizes: Sequence[Sequence[float]],
        aspect_ratios: Sequence[Sequence[float]],
        iou_ratio: float = 0.5,
        weight: float = 0.01,
    ) -> None:
        super().__init__(student, teacher)
        if dict(teacher.strides) != dict(student.strides):
            raise ValueError(
                f"the teacher has the levels {dict(teacher.strides)}, the student {dict(student.strides)}"
            )
        for name, rows in (("anchor_sizes", anchor_sizes), ("aspect_ratios", aspect_ratios)):
            if len(rows) not in (1, len(student.strides)):
                raise ValueError(
                    f"{name} has {counted(len(rows), 'row')} for {counted(len(student.strides), 'level')}"
                )
        self.adapter = Conv2d(student.channels, teacher.channels, 3, padding=1)
        self.iou_ratio = iou_ratio
        self.weight = weight
        self._cells = {
            level: cell_anchors(
                anchor_sizes[number % len(anchor_sizes)], aspect_ratios[number % len(aspect_ratios)]
            )
            for number, level in enumerate(student.strides)
        }

    def imitate(
        self, features: Features, batch: Batch, assignment: Any, *, distill: bool
    ) -> dict[str, Tensor]:
        """See `ImitatingStudent.imitate`; the adapter learns in any case."""
        with torch.no_grad():
            taught = self.teacher.extract_features(batch)
            cells = self.near_objects(features, batch.targets)
        if not distill:
            features = {level: x.detach() for level, x in features.items()}
        adapted = {level: self.adapter(x) for level, x in features.items()}
        return {"loss_distill": self.weight * imitation_loss(adapted, taught, cells)}

    def near_objects(self, features: Features, targets: Targets) -> dict[str, Tensor]:
        """Mark the cells whose anchors overlap an object nearly as much as its best anchor does (eq. 2-3).

        Args:
            features: {level: (B, C, h, w)}; their sizes count.
            targets: ground truth.

        Returns:
            {level: (B, h, w) bool}.
        """
        anchors = {
            level: grid_anchors(
                targets.boxes.new_tensor(self._cells[level]), x.shape[-2], x.shape[-1], stride
            )
            for (level, stride), x in zip(self.student.strides.items(), features.values(), strict=True)
        }
        near = near_anchors(torch.cat(list(anchors.values())), targets, self.iou_ratio)
        parts = torch.split(near, [len(part) for part in anchors.values()], dim=1)
        return {
            level: part.view(len(part), *features[level].shape[-2:], -1).any(dim=-1)
            for level, part in zip(anchors, parts, strict=True)
        }


def near_anchors(anchors: Tensor, targets: Targets, iou_ratio: float) -> Tensor:
    """Mark the anchors that overlap an object by more than `iou_ratio` times its best overlap.

    Args:
        anchors: (A, 4) xyxy.
        targets: ground truth.
        iou_ratio: in [0, 1].

    Returns:
        (B, A) bool.
    """
    # Boxes without area overlap nothing, so that unused slots drop out.
    boxes = torch.where(targets.valid[..., None], targets.boxes, 0)
    num_images, num_slots = boxes.shape[:2]
    near = boxes.new_zeros(num_images, len(anchors), dtype=torch.bool)
    chunk_size = max(1, _MAX_PAIRS // (num_images * len(anchors)))
    for start in range(0, num_slots, chunk_size):
        overlaps = box_iou(boxes[:, start : start + chunk_size], anchors)
        best = overlaps.amax(dim=2, keepdim=True)
        near |= (overlaps > iou_ratio * best).any(dim=1)
    return near


def imitation_loss(adapted: Features, taught: Features, cells: Mapping[str, Tensor]) -> Tensor:
    """Half the squared difference of the features in the marked cells, per marked cell (eq. 4).

    Args:
        adapted: {level: (B, C, h, w)} of the student.
        taught: the teacher's, same shapes.
        cells: {level: (B, h, w) bool}.

    Returns:
        Scalar; 0 where no cell is marked.
    """
    total = torch.stack(
        [
            ((_promote(x) - _promote(taught[level])).square().sum(dim=1) * cells[level]).sum()
            for level, x in adapted.items()
        ]
    ).sum()
    count = torch.stack([mask.sum() for mask in cells.values()]).sum()
    return total / (2 * count.clamp(min=1))


def _promote(x: Tensor) -> Tensor:
    """At least float32: sums of squares don't survive half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
