"""What the methods share whose teacher is a pretrained detector that stays as it is."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, cast

from torch import Tensor, nn

from lgd.detectors.protocol import Detector
from lgd.distill.distiller import PlainStudent
from lgd.structures import Batch, Features


def keep_fixed(detector: Detector) -> None:
    """Let a detector evaluate, whatever trains around it, and its parameters take no gradient."""
    cast(nn.Module, detector).requires_grad_(False).eval()


class ImitatingStudent(PlainStudent):
    """Trains a detector beside a pretrained, fixed one.

    Args:
        student: any detector.
        teacher: a trained detector; it never changes, and its parameters take no gradient.
    """

    def __init__(self, student: Detector, teacher: Detector) -> None:
        super().__init__(student)
        self.teacher = teacher
        keep_fixed(teacher)

    def train(self, mode: bool = True) -> ImitatingStudent:
        """Set the mode of all but the teacher, which always evaluates."""
        super().train(mode)
        keep_fixed(self.teacher)
        return self

    def forward(
        self, batch: Batch, *, distill: bool, head_share: float = 1.0, weight_factor: float = 1.0
    ) -> dict[str, Tensor]:
        """Compute the losses of one step.

        Args:
            batch: images and targets.
            distill: whether the student learns from the teacher. If not, the losses have the same values.
            head_share: changes nothing; the teacher's losses are LGD's.
            weight_factor: of the losses of `imitate`, beside their weights.

        Returns:
            Scalars: the student's losses and those of `imitate`.
        """
        features = self.student.extract_features(batch)
        losses, assignment = self.student.compute_losses(features, batch)
        imitated = self.imitate(features, batch, assignment, distill=distill)
        return losses | {name: weight_factor * loss for name, loss in imitated.items()}

    @abstractmethod
    def imitate(
        self, features: Features, batch: Batch, assignment: Any, *, distill: bool
    ) -> dict[str, Tensor]:
        """Hold the student against the teacher.

        Args:
            features: the student's.
            batch: see `forward`.
            assignment: what the student's losses gave back, see `Detector.compute_losses`.
            distill: see `forward`.

        Returns:
            Scalars with their weights, "loss_distill" among them.
        """
