"""The head of FCOS, ATSS, POTO and GFL, and what it says.

Legend: B images, A locations of all levels or of one, K classes, C channels, n + 1 bins
of a side's distribution.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lgd.detectors.dense import Towers, finish_towers, init_head
from lgd.detectors.protocol import TowerFeatures
from lgd.layers.conv import Conv2d
from lgd.layers.norm import make_norm
from lgd.ops.predictions import flatten_predictions, promote
from lgd.structures import Features


@dataclass(frozen=True)
class PointPredictions:
    """What a head says at every location of one level, or of all.

    Attributes:
        logits: (B, A, K) of the classes.
        distances: (B, A, 4) left top right bottom, pixels, at least 0.
        centerness: (B, A) logits; None from a head without.
        sides: (B, A, 4, n + 1) logits of the distances of 0 to n strides, whose mean is in `distances`; None
            from a head that predicts the distances themselves.
    """

    logits: Tensor
    distances: Tensor
    centerness: Tensor | None
    sides: Tensor | None = None


class Scale(nn.Module):
    """A factor that is learned."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        """`x` times the factor."""
        return x * self.scale


class PointHead(nn.Module):
    """Two towers of 3x3 convolutions, shared by all levels (FCOS, arXiv 1904.01355, section 3.2).

    Args:
        channels: C.
        num_classes: K.
        strides: by level, fine to coarse.
        num_convs: convolutions of each tower before the predicting ones, each with group norm and ReLU.
        prior_prob: score of every class that the fresh head predicts everywhere.
        centerness: the tower that predicts it, None for no centreness.
        distances_in_strides: predict rectified distances in strides, else the logarithm of pixels.
        num_bins: n + 1 of the distributions over 0 to n strides that are predicted in place of distances
            (GFL, arXiv 2006.04388, section 3); None for distances.

    Raises:
        ValueError: channels that the group norm does not divide.
    """

    def __init__(
        self,
        *,
        channels: int,
        num_classes: int,
        strides: Mapping[str, int],
        num_convs: int,
        prior_prob: float,
        centerness: Literal["box", "class"] | None,
        distances_in_strides: bool,
        num_bins: int | None = None,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.strides = dict(strides)
        self.centerness_tower = centerness
        self.distances_in_strides = distances_in_strides
        self.num_bins = num_bins
        self.cls_subnet = _make_tower(channels, num_convs)
        self.bbox_subnet = _make_tower(channels, num_convs)
        self.cls_score = Conv2d(channels, num_classes, 3, padding=1)
        self.bbox_pred = Conv2d(channels, 4 * (num_bins or 1), 3, padding=1)
        self.centerness = None if centerness is None else Conv2d(channels, 1, 3, padding=1)
        self.scales = nn.ModuleList(Scale() for _ in strides)
        init_head(self, self.cls_score, prior_prob)

    @property
    def towers(self) -> Towers:
        """What lies before the predicting convolutions."""
        return self.cls_subnet, self.bbox_subnet

    def forward(self, features: Features) -> list[PointPredictions]:
        """Predict on every level, fine to coarse; A goes row by row."""
        return [
            self._predict(self.cls_subnet(features[level]), self.bbox_subnet(features[level]), scale, stride)
            for (level, stride), scale in zip(self.strides.items(), self.scales, strict=True)
        ]

    def finish(self, begun: TowerFeatures, num_convs: int) -> list[PointPredictions]:
        """Predict on every level from what the first `num_convs` convolutions of the towers give."""
        ends = finish_towers(self.towers, begun, num_convs)
        return [
            self._predict(ends.for_class[level], ends.for_box[level], scale, stride)
            for (level, stride), scale in zip(self.strides.items(), self.scales, strict=True)
        ]

    def _predict(self, for_class: Tensor, for_box: Tensor, scale: nn.Module, stride: int) -> PointPredictions:
        """From the ends of the two towers, (B, C, h, w) each."""
        raw = promote(flatten_predictions(scale(self.bbox_pred(for_box)), 4 * (self.num_bins or 1)))
        central = None
        if self.centerness is not None:
            source = for_box if self.centerness_tower == "box" else for_class
            central = promote(flatten_predictions(self.centerness(source), 1).squeeze(-1))
        logits = promote(flatten_predictions(self.cls_score(for_class), self.num_classes))
        if self.num_bins is not None:
            sides = raw.view(*raw.shape[:-1], 4, self.num_bins)
            return PointPredictions(logits, mean_bins(sides) * stride, central, sides)
        distances = F.relu(raw) * stride if self.distances_in_strides else raw.exp()
        return PointPredictions(logits, distances, central)


def mean_bins(sides: Tensor) -> Tensor:
    """Means of distributions over 0 to n, from logits (..., n + 1): (...) (GFL, eq. 5)."""
    bins = torch.arange(sides.shape[-1], dtype=sides.dtype, device=sides.device)
    return (sides.softmax(dim=-1) * bins).sum(dim=-1)


def join_levels(levels: Sequence[PointPredictions]) -> PointPredictions:
    """Predictions of all levels as of one."""
    central = [level.centerness for level in levels if level.centerness is not None]
    sides = [level.sides for level in levels if level.sides is not None]
    return PointPredictions(
        logits=torch.cat([level.logits for level in levels], dim=1),
        distances=torch.cat([level.distances for level in levels], dim=1),
        centerness=torch.cat(central, dim=1) if central else None,
        sides=torch.cat(sides, dim=1) if sides else None,
    )


def split_images(predictions: PointPredictions, num_parts: int) -> list[PointPredictions]:
    """Cut a batch of predictions into equal parts."""
    columns = zip(
        predictions.logits.chunk(num_parts),
        predictions.distances.chunk(num_parts),
        *(
            [None] * num_parts if x is None else x.chunk(num_parts)
            for x in (predictions.centerness, predictions.sides)
        ),
        strict=True,
    )
    return [PointPredictions(*parts) for parts in columns]


def _make_tower(channels: int, num_convs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(num_convs):
        norm = make_norm("GN", channels)
        assert norm is not None
        layers += [Conv2d(channels, channels, 3, padding=1), norm, nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)
