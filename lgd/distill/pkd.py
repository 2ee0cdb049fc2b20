"""PKD: a student whose features go with those of a pretrained detector, channel by channel.

The features of each channel are standardised over the batch, and half their mean squared difference is the
loss: one minus Pearson's correlation. Scale and offset of a channel count for nothing, and there is nothing
to learn but the student, so that any two detectors of as many channels can be paired.

Source: PKD, General Distillation Framework for Object Detectors via Pearson Correlation Coefficient
(arXiv 2207.02039).
Legend: B images, L levels of C x h x w.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lgd.detectors.protocol import Detector
from lgd.distill.distiller import LabelGuidedDistiller, canvas_cells
from lgd.distill.imitation import ImitatingStudent, keep_fixed
from lgd.distill.teacher import DynamicTeacher
from lgd.layers.recompute import cheaply_recomputed
from lgd.ops.predictions import promote
from lgd.ranks.process_group import all_reduce_sum, get_world_size
from lgd.structures import Batch, Features

_LEAST_DEVIATION = 1e-6
"""What varies less is taken to vary by so much: the same all over, it has no correlation."""


class PearsonImitation(ImitatingStudent):
    """Trains a detector and makes its features go with those of a pretrained, fixed detector.

    Args:
        student: any detector.
        teacher: a trained detector of any kind with as many channels.
        weight: factor of the imitation loss (alpha of the paper).

    Raises:
        ValueError: the teacher has other channels, or no level of a stride of the student's.
    """

    def __init__(self, *, student: Detector, teacher: Detector, weight: float = 6.0) -> None:
        super().__init__(student, teacher)
        self.weight = weight
        self.levels = pair_levels(student, teacher)

    def imitate(
        self, features: Features, batch: Batch, assignment: Any, *, distill: bool
    ) -> dict[str, Tensor]:
        """See `ImitatingStudent.imitate`."""
        compared = compare_features(features, self.teacher, self.levels, batch, distill=distill)
        return {"loss_distill": self.weight * compared}


class LabelGuidedImitation(LabelGuidedDistiller):
    """LGD and PKD together: a teacher that reads the labels, and a pretrained detector beside it.

    Neither paper has this. Both losses are added, each with its weight, in the same phases.

    Args:
        student: any detector.
        teacher: LGD's.
        adapter: LGD's.
        pretrained: as the teacher of `PearsonImitation`.
        imitation_weight: factor of PKD's loss.
        others: as of `LabelGuidedDistiller`.

    Raises:
        ValueError: as `PearsonImitation`.
    """

    def __init__(
        self,
        *,
        student: Detector,
        teacher: DynamicTeacher,
        adapter: nn.Module,
        pretrained: Detector,
        imitation_weight: float = 6.0,
        **others: Any,
    ) -> None:
        super().__init__(student=student, teacher=teacher, adapter=adapter, **others)
        self.pretrained = pretrained
        self.imitation_weight = imitation_weight
        self.levels = pair_levels(student, pretrained)
        keep_fixed(pretrained)

    def train(self, mode: bool = True) -> LabelGuidedImitation:
        """Set the mode of all but the pretrained detector, which always evaluates."""
        super().train(mode)
        keep_fixed(self.pretrained)
        return self

    def compute_losses(
        self, features: Features, batch: Batch, *, distill: bool, head_share: float, weight_factor: float
    ) -> dict[str, Tensor]:
        """LGD's losses and "loss_pkd"."""
        losses = super().compute_losses(
            features, batch, distill=distill, head_share=head_share, weight_factor=weight_factor
        )
        compared = compare_features(features, self.pretrained, self.levels, batch, distill=distill)
        losses["loss_pkd"] = self.imitation_weight * weight_factor * compared
        return losses


def pair_levels(student: Detector, teacher: Detector) -> dict[str, str]:
    """Levels of the student with the teacher's of the same stride; those that only one has are left out.

    Raises:
        ValueError: the teacher has other channels, or no level of a stride of the student's.
    """
    if teacher.channels != student.channels:
        raise ValueError(
            f"the teacher's features have {teacher.channels} channels, the student's {student.channels}; PKD "
            "compares channel with channel"
        )
    levels = {stride: level for level, stride in teacher.strides.items()}
    pairs = {level: levels[stride] for level, stride in student.strides.items() if stride in levels}
    if not pairs:
        raise ValueError(
            f"the teacher has the levels {dict(teacher.strides)}, the student {dict(student.strides)}: none "
            "of the same stride"
        )
    return pairs


def compare_features(
    features: Features, teacher: Detector, levels: Mapping[str, str], batch: Batch, *, distill: bool
) -> Tensor:
    """Hold the student's features against a detector's of the same images.

    Args:
        features: {level: (B, C, h, w)} of the student.
        teacher: the detector.
        levels: the student's levels with the teacher's, see `pair_levels`.
        batch: images.
        distill: whether anything learns from it.

    Returns:
        See `pearson_loss`.
    """
    with torch.no_grad():
        all_taught = teacher.extract_features(batch)
    taught = {ours: all_taught[theirs] for ours, theirs in levels.items()}
    chosen = {level: _resized(features[level], x) for level, x in taught.items()}
    if not distill:
        chosen = {level: x.detach() for level, x in chosen.items()}
    strides = {ours: teacher.strides[theirs] for ours, theirs in levels.items()}
    counted = None if batch.canvas is None else canvas_cells(batch.canvas, taught, strides)
    return pearson_loss(chosen, taught, counted)


def _resized(x: Tensor, like: Tensor) -> Tensor:
    """The student's map in the size of the teacher's, as in the authors' code where these differ."""
    if x.shape[-2:] == like.shape[-2:]:
        return x
    return F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=False)


def pearson_loss(features: Features, taught: Features, counted: Mapping[str, Tensor] | None = None) -> Tensor:
    """Half the mean squared difference of the standardised features, summed over the levels.

    Mean and deviation of a channel are of all its cells on all images of all ranks, so that N ranks give the
    gradient of one; the authors take each GPU's own. It is 1 - r in the mean over the channels.

    Args:
        features: {level: (B, C, h, w)} of the student.
        taught: the teacher's, same shapes; no gradient flows into them.
        counted: {level: (h, w) bool}, at least one cell of each; the others count nowhere. None for all.

    Returns:
        Scalar in [0, 2 L].
    """
    cells = dict.fromkeys(features) if counted is None else counted
    pairs = [(promote(x), promote(taught[level].detach()), cells[level]) for level, x in features.items()]
    with torch.no_grad():
        # In float32 and above. No gradient: that of a mean is 0, what lies around it sums to nothing.
        sums = all_reduce_sum(torch.stack([_sums(*pair) for pair in pairs]))
        counts = sums[:, -1:, None]
        means = sums[:, :-1].view(len(pairs), 2, -1) / counts
    moments = torch.stack(
        [cheaply_recomputed(_moments, *pair, mean) for pair, mean in zip(pairs, means, strict=True)]
    )
    variances, taught_variances, covariances = (_sum_over_ranks(moments) / counts).unbind(1)
    deviations, taught_deviations = (
        x.clamp(min=_LEAST_DEVIATION**2).sqrt() for x in (variances, taught_variances)
    )
    squares = variances / deviations.square() + taught_variances / taught_deviations.square()
    return (squares / 2 - covariances / (deviations * taught_deviations)).mean(dim=1).sum()


def _sums(x: Tensor, taught: Tensor, cells: Tensor | None) -> Tensor:
    """(2 C + 1): each channel's sum of both maps (B, C, h, w), and the number of summands of one."""
    shares = x.new_ones(x.shape[-2:]) if cells is None else cells.to(x.dtype)
    sums = [(each * shares).sum(dim=(0, 2, 3)) for each in (x, taught)]
    return torch.cat([*sums, (shares.sum() * x.shape[0])[None]])


def _moments(x: Tensor, taught: Tensor, cells: Tensor | None, means: Tensor) -> Tensor:
    """(3, C): sums of squares around the means (2, C) of each map, and of the products."""
    x, taught = (each - mean[:, None, None] for each, mean in zip((x, taught), means, strict=True))
    if cells is not None:
        x, taught = (torch.where(cells, each, 0) for each in (x, taught))
    return torch.stack([(a * b).sum(dim=(0, 2, 3)) for a, b in ((x, x), (taught, taught), (x, taught))])


def _sum_over_ranks(x: Tensor) -> Tensor:
    total: Tensor = _SumOverRanks.apply(x) if get_world_size() > 1 else x
    return total


class _SumOverRanks(torch.autograd.Function):
    """Sums what every rank then makes the same loss of.

    So each has the gradient of the sum without asking; and since the ranks' gradients are averaged
    afterwards, each rank's share in the sum counts as often as there are ranks.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return all_reduce_sum(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * get_world_size()
