"""GFL (arXiv 2006.04388): scores that say how good the box is, and sides that are distributions.

The assignment is ATSS's. A score is to be the IoU of the predicted box with its object (quality focal loss),
so that there is no centreness; a side is a distribution over 0 to n strides, whose mean is the distance
(distribution focal loss).

Legend: B images, A locations of all levels, K classes, n + 1 bins of a side's distribution.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lgd.detectors.point_head import PointPredictions
from lgd.detectors.points import Assigner, PointAssignment, PointDetector
from lgd.ops.boxes import box_iou
from lgd.ops.locations import boxes_around
from lgd.ops.losses import distribution_focal_loss, giou_loss, quality_focal_loss
from lgd.structures import Features, Targets


@dataclass(frozen=True)
class GFLAssignment(PointAssignment):
    """What every location of a batch has to predict.

    Attributes:
        strides: (A,) pixels per cell of each location's level.
    """

    strides: Tensor


class GFL(PointDetector):
    """The detector; see `lgd.detectors.protocol.Detector`.

    Args:
        assigner: which location answers for which object, ATSS's in the paper.
        num_bins: n + 1.
        beta: focusing exponent of the quality focal loss.
        box_loss_weight: factor of the generalised IoU loss (lambda 0 of the paper).
        side_loss_weight: factor of the distribution focal loss, the mean over the four sides (lambda 1).
        others: of `PointDetector`; no centreness, and distances in strides.

    Raises:
        ValueError: as `PointDetector`; fewer than two bins.
    """

    static_parts = ("extract_features", "_predict_joined", "_sum_losses")

    def __init__(
        self,
        *,
        assigner: Assigner,
        num_bins: int = 17,
        beta: float = 2.0,
        box_loss_weight: float = 2.0,
        side_loss_weight: float = 0.25,
        **others: Any,
    ) -> None:
        if num_bins < 2:
            raise ValueError(f"a distribution needs at least 2 bins, not {num_bins}")
        super().__init__(
            assigner=assigner, num_bins=num_bins, centerness=None, box_loss_weight=box_loss_weight, **others
        )
        self.beta = beta
        self.side_loss_weight = side_loss_weight

    @torch.no_grad()
    def assign(self, features: Features, targets: Targets, predictions: PointPredictions) -> GFLAssignment:
        """Decide what every location, those in the padding too, has to predict."""
        found = super().assign(features, targets, predictions)
        levels = self._make_levels(features)
        strides = torch.cat([torch.full_like(level.locations[:, 0], level.stride) for level in levels])
        return GFLAssignment(**vars(found), strides=strides)

    def _hold_against(self, predictions: PointPredictions, assignment: PointAssignment) -> dict[str, Tensor]:
        """Losses by name.

        Those of the boxes weigh each location by its best score, and are divided by the sum of these weights,
        over all ranks and at least 1: the paper says that quality scores weigh them, not which.
        """
        sums = self._sum_losses(predictions, assignment)
        weight = self._average_over_ranks(sums.pop("weight").detach())
        return {
            name: loss / (assignment.num_foreground if name == "loss_cls" else weight)
            for name, loss in sums.items()
        }

    def _sum_losses(self, predictions: PointPredictions, assignment: PointAssignment) -> dict[str, Tensor]:
        """Losses by name, summed over the locations, and "weight", what the boxes' are to be divided by."""
        assert isinstance(assignment, GFLAssignment)
        assert predictions.sides is not None
        foreground = assignment.labels < self.num_classes
        origin = predictions.distances.new_zeros(2)
        boxes = boxes_around(origin, predictions.distances)
        targets = boxes_around(origin, assignment.distances)
        overlaps = box_iou(boxes.detach()[..., None, :], targets[..., None, :]).flatten(-3)
        qualities = torch.where(foreground, overlaps, 0)
        scores = predictions.logits.detach().amax(dim=-1).sigmoid()
        weights = torch.where(foreground, scores, 0)
        of_sides = distribution_focal_loss(
            predictions.sides,
            assignment.distances / assignment.strides[:, None],
            weights[..., None].expand_as(assignment.distances),
        )
        return {
            "loss_cls": quality_focal_loss(predictions.logits, assignment.labels, qualities, beta=self.beta),
            "loss_box_reg": giou_loss(boxes, targets, weights) * self.box_loss_weight,
            "loss_dfl": of_sides / 4 * self.side_loss_weight,
            "weight": weights.sum(),
        }
