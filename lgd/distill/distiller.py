"""Training a student with a teacher that reads the labels, for every detector alike.

Source: LGD (arXiv 2109.11496, section 3.5).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from lgd.detectors.protocol import Detector, OneStageDetector
from lgd.distill.comparison import distillation_loss
from lgd.distill.head import SlowHead, Weights, head_parameters, losses_through, shared_by
from lgd.distill.teacher import DynamicTeacher
from lgd.layers.conv import Conv2d
from lgd.structures import Batch, Features


class Adapter(nn.Sequential):
    """Three 3x3 convolutions between the student's features and the comparison, shared by all levels.

    Args:
        channels: C, in and out.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(
            Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(inplace=True),
            Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(inplace=True),
            Conv2d(channels, channels, 3, padding=1),
        )


class PlainStudent(nn.Module):
    """Trains a detector alone, with the calls of `LabelGuidedDistiller`."""

    def __init__(self, student: Detector) -> None:
        super().__init__()
        self.student = student

    def begin_step(self, step: int) -> None:
        """Nothing here goes by the step."""

    def forward(
        self, batch: Batch, *, distill: bool, head_share: float = 1.0, weight_factor: float = 1.0
    ) -> dict[str, Tensor]:
        """Return the student's losses; only `batch` makes a difference."""
        losses, _ = self.student.compute_losses(self.student.extract_features(batch), batch)
        return losses


class LabelGuidedDistiller(nn.Module):
    """Trains student, teacher and adapter together.

    Args:
        student: any detector.
        teacher: makes features of the student's shapes from them and the labels.
        adapter: maps the student's features before they are compared, keeping their shapes.
        weight: factor of the distillation loss.
        loss: compares the adapted features with the teacher's, as `distillation_loss` does.
        slow_head: stands in for the head under the teacher's features; None for the head itself.
        head_once: run the head of a one-stage detector once, on the student's and the teacher's features
            together: the same numbers, up to the order of sums. Where the teacher's losses are not to train
            the head as the student's do, it runs twice all the same.
        image_share: share of a batch's images, the first ones, that the teacher sees and teaches, in (0, 1]
            and rounded up; the losses of these stand for those of all.

    Raises:
        ValueError: a share of the images beyond (0, 1].
    """

    static_parts = ("_compare",)

    def __init__(
        self,
        *,
        student: Detector,
        teacher: DynamicTeacher,
        adapter: nn.Module,
        weight: float = 1.0,
        loss: Callable[[Features, Features, Mapping[str, Tensor] | None], Tensor] = distillation_loss,
        slow_head: SlowHead | None = None,
        head_once: bool = False,
        image_share: float = 1.0,
    ) -> None:
        super().__init__()
        if not 0 < image_share <= 1:
            raise ValueError(f"image_share {image_share} is not in (0, 1]")
        self.student = student
        self.teacher = teacher
        self.adapter = adapter
        self.weight = weight
        self.loss = loss
        self.slow_head = slow_head
        self.head_once = head_once
        self.image_share = image_share

    def begin_step(self, step: int) -> None:
        """Let the slow head follow; to be called once before each step, counted from 0."""
        if self.slow_head is not None:
            self.slow_head.follow(head_parameters(self.student), step)

    def forward(
        self, batch: Batch, *, distill: bool, head_share: float = 1.0, weight_factor: float = 1.0
    ) -> dict[str, Tensor]:
        """Compute the losses of one step.

        Args:
            batch: images and targets.
            distill: whether the student learns from the distillation loss. If not, the loss has the
                same value, and only the adapter learns from it.
            head_share: of the gradient of the teacher's losses, what reaches the head's weights; in [0, 1].
                None does where there is a slow head.
            weight_factor: of the distillation loss, beside `weight`.

        Returns:
            Scalars: the student's losses, the same on the teacher's features as "<name>.tea", and
            "loss_distill".
        """
        return self.compute_losses(
            self.student.extract_features(batch),
            batch,
            distill=distill,
            head_share=head_share,
            weight_factor=weight_factor,
        )

    def compute_losses(
        self, features: Features, batch: Batch, *, distill: bool, head_share: float, weight_factor: float
    ) -> dict[str, Tensor]:
        """Do what `forward` does, with the student's features of the batch."""
        number = math.ceil(self.image_share * len(batch.images) - 1e-9)  # 0.7 x 10 is a little above 7
        is_part = number < len(batch.images)
        seen = {level: x[:number] for level, x in features.items()} if is_part else features
        taught = self.teach(seen, batch.first(number) if is_part else batch)
        losses, teacher_losses = self._hold_against_labels(features, taught, batch, head_share)
        losses |= {f"{name}.tea": loss for name, loss in teacher_losses.items()}
        if not distill:
            seen = {level: x.detach() for level, x in seen.items()}
        counted = None if batch.canvas is None else canvas_cells(batch.canvas, seen, self.student.strides)
        losses["loss_distill"] = self.weight * weight_factor * self._compare(seen, taught, counted)
        return losses

    def _hold_against_labels(
        self, features: Features, taught: Features, batch: Batch, head_share: float
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The detector's losses on the student's features and on the teacher's, of all images or some."""
        own = self.slow_head is None and head_share == 1
        number = len(next(iter(taught.values())))
        is_part = number < len(batch.images)
        if own and self.head_once and not is_part and isinstance(self.student, OneStageDetector):
            return self.student.compute_losses_of_both(features, taught, batch)
        losses, assignment = self.student.compute_losses(features, batch)
        if is_part:
            batch, assignment = batch.first(number), assignment and assignment.first(number)
        if own:
            return losses, self.student.compute_losses(taught, batch, assignment)[0]
        weights = self._head_of_teacher(head_share)
        return losses, losses_through(self.student, weights, taught, batch, assignment)

    def _head_of_teacher(self, share: float) -> Weights:
        """What stands in for the head's weights; before the first step the slow head is the head itself."""
        if self.slow_head is None:
            return shared_by(head_parameters(self.student), share)
        return self.slow_head.weights or shared_by(head_parameters(self.student), 0)

    def _compare(self, features: Features, taught: Features, counted: Mapping[str, Tensor] | None) -> Tensor:
        """The distillation loss before its weight, see `distillation_loss`."""
        return self.loss({level: self.adapter(x) for level, x in features.items()}, taught, counted)

    def teach(self, features: Features, batch: Batch) -> Features:
        """Return the teacher's features for the student's `features` and the labels of `batch`."""
        taught: Features = self.teacher(features, batch)
        return taught


def canvas_cells(canvas: Tensor, features: Features, strides: Mapping[str, int]) -> dict[str, Tensor]:
    """Mark the cells that the levels would have on a canvas that is smaller than the images' own.

    Args:
        canvas: (2,) int64, (height, width), pixels.
        features: {level: (B, C, h, w)}.
        strides: pixels of the canvas per cell by level.

    Returns:
        {level: (h, w) bool}.
    """
    marks = {}
    for level, x in features.items():
        rows, columns = (
            torch.arange(side, device=x.device) * strides[level] < pixels
            for side, pixels in zip(x.shape[-2:], canvas.unbind(), strict=True)
        )
        marks[level] = rows[:, None] & columns
    return marks
