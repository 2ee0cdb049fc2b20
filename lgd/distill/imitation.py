"""What the methods share whose teacher is a pretrained detector that stays as it is."""

from __future__ import annotations

from typing import cast

from torch import nn

from lgd.detectors.protocol import Detector
from lgd.distill.distiller import PlainStudent


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
