"""Training a student with a teacher that reads the labels, for every detector alike.

Source: LGD (arXiv 2109.11496, section 3.5).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lgd.detectors.protocol import Detector, OneStageDetector
from lgd.distill.teacher import DynamicTeacher
from lgd.layers.conv import Conv2d
from lgd.layers.recompute import cheaply_recomputed
from lgd.structures import Batch, Features

_EPS = 1e-5


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

    def forward(self, batch: Batch, *, distill: bool) -> dict[str, Tensor]:
        """Return the student's losses; `distill` changes nothing."""
        losses, _ = self.student.compute_losses(self.student.extract_features(batch), batch)
        return losses


class LabelGuidedDistiller(nn.Module):
    """Trains student, teacher and adapter together.

    Args:
        student: any detector.
        teacher: makes features of the student's shapes from them and the labels.
        adapter: maps the student's features before they are compared, keeping their shapes.
        weight: factor of the distillation loss.
        head_once: run the head of a one-stage detector once, on the student's and the teacher's features
            together: the same numbers, up to the order of sums.
    """

    static_parts = ("_compare",)

    def __init__(
        self,
        *,
        student: Detector,
        teacher: DynamicTeacher,
        adapter: nn.Module,
        weight: float = 1.0,
        head_once: bool = False,
    ) -> None:
        super().__init__()
        self.student = student
        self.teacher = teacher
        self.adapter = adapter
        self.weight = weight
        self.head_once = head_once

    def forward(self, batch: Batch, *, distill: bool) -> dict[str, Tensor]:
        """Compute the losses of one step.

        Args:
            batch: images and targets.
            distill: whether the student learns from the distillation loss. If not, the loss has the
                same value, and only the adapter learns from it.

        Returns:
            Scalars: the student's losses, the same on the teacher's features as "<name>.tea", and
            "loss_distill".
        """
        features = self.student.extract_features(batch)
        taught = self.teach(features, batch)
        losses, teacher_losses = self._hold_against_labels(features, taught, batch)
        losses |= {f"{name}.tea": loss for name, loss in teacher_losses.items()}
        if not distill:
            features = {level: x.detach() for level, x in features.items()}
        counted = None if batch.canvas is None else canvas_cells(batch.canvas, features, self.student.strides)
        losses["loss_distill"] = self._compare(features, taught, counted)
        return losses

    def _hold_against_labels(
        self, features: Features, taught: Features, batch: Batch
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The detector's losses on the student's features and on the teacher's."""
        if self.head_once and isinstance(self.student, OneStageDetector):
            return self.student.compute_losses_of_both(features, taught, batch)
        losses, assignment = self.student.compute_losses(features, batch)
        return losses, self.student.compute_losses(taught, batch, assignment)[0]

    def _compare(self, features: Features, taught: Features, counted: Mapping[str, Tensor] | None) -> Tensor:
        """The weighted distillation loss, see `distillation_loss`."""
        adapted = {level: self.adapter(x) for level, x in features.items()}
        return self.weight * distillation_loss(adapted, taught, counted)

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


def distillation_loss(
    adapted: Features, taught: Features, counted: Mapping[str, Tensor] | None = None
) -> Tensor:
    """Mean squared difference of the normalised features over all elements of all levels.

    Args:
        adapted: {level: (B, C, h, w)} of the student.
        taught: the teacher's, same shapes; no gradient flows into them.
        counted: {level: (h, w) bool}, at least one cell of each; the others count nowhere. None for all.

    Returns:
        Scalar.
    """
    if counted is not None:
        return _loss_of_cells(adapted, taught, counted)
    total = torch.stack(
        [cheaply_recomputed(_squared_difference, x, taught[level].detach()) for level, x in adapted.items()]
    ).sum()
    return total / sum(x.numel() for x in adapted.values())


def _loss_of_cells(adapted: Features, taught: Features, counted: Mapping[str, Tensor]) -> Tensor:
    """`distillation_loss` of some cells; how many is known to the device alone."""
    totals, numbers = [], []
    for level, x in adapted.items():
        cells = counted[level]
        totals.append(cheaply_recomputed(_squared_difference, x, taught[level].detach(), cells))
        numbers.append(cells.sum() * (x.shape[0] * x.shape[1]))
    return torch.stack(totals).sum() / torch.stack(numbers).sum()


def _squared_difference(x: Tensor, taught: Tensor, cells: Tensor | None = None) -> Tensor:
    """Squared difference of the normalised maps (B, C, h, w), summed over the `cells` (h, w) that count."""
    difference = _instance_norm(x, cells) - _instance_norm(taught, cells)
    if cells is not None:
        difference = torch.where(cells, difference, 0)
    return difference.square().sum()


def _instance_norm(x: Tensor, cells: Tensor | None = None) -> Tensor:
    """Normalise each channel of each image, in at least float32; a map of one cell becomes 0.

    torch's own raises on such a map in training. With `cells` (h, w) mean and variance are of these alone.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    if cells is None:
        variance, mean = torch.var_mean(x, dim=(-2, -1), correction=0, keepdim=True)
    else:
        mean = torch.where(cells, x, 0).sum(dim=(-2, -1), keepdim=True) / cells.sum()
        variance = torch.where(cells, x - mean, 0).square().sum(dim=(-2, -1), keepdim=True) / cells.sum()
    return (x - mean) * (variance + _EPS).rsqrt()
