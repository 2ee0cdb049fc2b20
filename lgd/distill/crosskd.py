"""CrossKD: the student's head goes on in a pretrained teacher's, and is to say there what the teacher says.

Features from within the student's head go through the rest of the teacher's. So the student's own
predictions answer to the labels alone, and what it learns from the teacher reaches it through the teacher's
last layers, which stay as they are.

Source: CrossKD, Cross-Head Knowledge Distillation for Object Detection (arXiv 2306.11369, section 3). What it
leaves open is said where it is settled.
Legend: B images, A positions of all levels, K classes, n + 1 bins of a side's distribution.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lgd.detectors.protocol import DenseDetector, DensePredictions, Detector, TowerFeatures
from lgd.distill.imitation import ImitatingStudent
from lgd.ops.losses import giou_loss, soft_focal_loss
from lgd.ranks.process_group import all_reduce_sum, get_world_size
from lgd.structures import Batch, Features

_BETA = 2.0
"""Focusing exponent of the quality focal loss."""


class CrossHeadImitation(ImitatingStudent):
    """Trains a detector with a dense head and distils a trained one's predictions across the heads.

    The two may be of different kinds as long as their heads are cut at maps of the same channels and predict
    at as many positions.

    Args:
        student: a detector with a dense head.
        teacher: a trained one.
        layer: the student's features after so many convolutions of its towers go on in the teacher's towers
            after as many; None for one fewer than the teacher's towers have: of the usual four the third, as
            in the paper.
        class_weight: factor of the loss of the scores.
        box_weight: factor of the loss of the boxes.

    Raises:
        ValueError: a detector without dense head; two that do not go together; a layer that there is not.
    """

    def __init__(
        self,
        *,
        student: Detector,
        teacher: Detector,
        layer: int | None = None,
        class_weight: float = 1.0,
        box_weight: float = 1.0,
    ) -> None:
        super().__init__(student, teacher)
        for whose, detector in (("student", student), ("teacher", teacher)):
            if not isinstance(detector, DenseDetector):
                raise ValueError(
                    f"the {whose} ({type(detector).__name__}) has no dense head of two towers; RetinaNet, "
                    "FCOS, ATSS, POTO and GFL have"
                )
        assert isinstance(student, DenseDetector)
        assert isinstance(teacher, DenseDetector)
        _require_alike(student, teacher)
        self.layer = teacher.num_head_convs - 1 if layer is None else layer
        most = min(student.num_head_convs, teacher.num_head_convs)
        if not 0 <= self.layer <= most:
            raise ValueError(
                f"layer {self.layer} is not within both heads, which have {student.num_head_convs} "
                f"(student) and {teacher.num_head_convs} (teacher) convolutions; choose 0 to {most}"
            )
        self.class_weight = class_weight
        self.box_weight = box_weight

    def imitate(
        self, features: Features, batch: Batch, assignment: Any, *, distill: bool
    ) -> dict[str, Tensor]:
        """See `ImitatingStudent.imitate`: "loss_distill" of the scores, "loss_distill_box" of the boxes."""
        student, teacher = self.student, self.teacher
        assert isinstance(student, DenseDetector)
        assert isinstance(teacher, DenseDetector)
        begun = student.begin_head(features, self.layer)
        crossed = teacher.finish_head(begun if distill else _detached(begun), self.layer)
        with torch.no_grad():
            taught = teacher.begin_head(teacher.extract_features(batch), self.layer)
            said = teacher.finish_head(taught, self.layer)
        of_classes, of_boxes = cross_head_losses(crossed, said, student.find_foreground(assignment))
        return {
            "loss_distill": self.class_weight * of_classes,
            "loss_distill_box": self.box_weight * of_boxes,
        }


def _require_alike(student: DenseDetector, teacher: DenseDetector) -> None:
    """Raise ValueError where the student's features do not fit into the teacher's head."""
    for what, ours, theirs in (
        ("levels", dict(student.strides), dict(teacher.strides)),
        ("channels", student.channels, teacher.channels),
        ("classes", student.num_classes, teacher.num_classes),
        ("anchors of a cell", student.positions_per_cell, teacher.positions_per_cell),
    ):
        if ours != theirs:
            raise ValueError(
                f"{what} of the teacher: {theirs}, of the student: {ours}; the student's features go through "
                "the teacher's head, so both must have the same"
            )


def _detached(begun: TowerFeatures) -> TowerFeatures:
    return TowerFeatures(
        *({level: x.detach() for level, x in part.items()} for part in (begun.for_class, begun.for_box))
    )


def cross_head_losses(
    crossed: DensePredictions, said: DensePredictions, foreground: Tensor
) -> tuple[Tensor, Tensor]:
    """Hold predictions of the student's features through the teacher's head against the teacher's own.

    The scores everywhere, by the quality focal loss with the teacher's scores as targets; the boxes by the
    generalised IoU where the student's own assignment has an object, or, where the teacher's head predicts
    distributions of their sides, by the mean Kullback-Leibler divergence of these. Both are divided by the
    number of such positions over all ranks, at least 1, as a dense detector's losses are; the paper does not
    say by what.

    Args:
        crossed: the student's features through the teacher's head.
        said: the teacher's predictions; no gradient flows into them.
        foreground: (B, A) bool.

    Returns:
        Two scalars: of the scores and of the boxes.
    """
    weights = foreground.to(crossed.boxes.dtype)
    count = all_reduce_sum(weights.sum()).clamp(min=1) / get_world_size()
    of_classes = soft_focal_loss(crossed.logits, said.logits.sigmoid(), beta=_BETA)
    if crossed.sides is None or said.sides is None:
        of_boxes = giou_loss(crossed.boxes, said.boxes.detach(), weights)
    else:
        of_boxes = (_divergence(crossed.sides, said.sides.detach()).mean(dim=-1) * weights).sum()
    return of_classes / count, of_boxes / count


def _divergence(logits: Tensor, said: Tensor) -> Tensor:
    """Kullback-Leibler divergence of the distributions (..., n + 1) from what is said: (...)."""
    log_shares, of_said = logits.log_softmax(dim=-1), said.log_softmax(dim=-1)
    return (of_said.exp() * (of_said - log_shares)).sum(dim=-1)
