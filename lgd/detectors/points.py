"""Detectors that predict, at every location, a class and the distances to the sides of its box.

FCOS, ATSS and POTO are this detector with different assigners: who answers for which object. GFL has other
losses too (`gfl.py`).

Legend: B images, A locations of all levels (A_l of one), N object slots per image, K classes, C channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lgd.detectors.dense import (
    begin_towers,
    count_convs,
    join_pyramids,
    select_as_reference,
    select_candidates,
)
from lgd.detectors.detections import SelectionLimits, keep_detections, to_original_sizes
from lgd.detectors.point_head import PointHead, PointPredictions, join_levels, split_images
from lgd.detectors.protocol import DensePredictions, TowerFeatures
from lgd.layers.fpn import FPN
from lgd.layers.pixels import PixelNormalizer
from lgd.ops.locations import boxes_around, centerness, grid_locations, side_distances
from lgd.ops.losses import giou_loss, sigmoid_focal_loss
from lgd.ops.predictions import take_rows
from lgd.ranks.process_group import all_reduce_sum, get_world_size
from lgd.structures import Batch, Detections, Features, PaddedDetections, Targets

_MAX_PAIRS = 2**22
"""Pairs of object and location held at a time, so that crowded images don't exhaust the memory."""


@dataclass(frozen=True)
class PointLevel:
    """The locations of one level.

    Attributes:
        locations: (A_l, 2) x y, pixels of the canvas.
        stride: pixels per cell.
    """

    locations: Tensor
    stride: int


@dataclass(frozen=True)
class PointAssignment:
    """What every location of a batch has to predict.

    Attributes:
        labels: (B, A) int64, the class in [0, K), K for background.
        distances: (B, A, 4) to the sides of the object, pixels; 0 in the background.
        weights: (B, A) of the box loss, 0 in the background: the centreness, in (0, 1], where the head
            predicts it, else 1.
        num_foreground: () what the sums over foreground locations are divided by, at least 1 over the ranks.
        sum_of_weights: () what the weighted box loss is divided by.
    """

    labels: Tensor
    distances: Tensor
    weights: Tensor
    num_foreground: Tensor
    sum_of_weights: Tensor

    def first(self, number: int) -> Self:
        """See `Assignment.first`."""
        share = number / len(self.labels)
        return replace(
            self,
            labels=self.labels[:number],
            distances=self.distances[:number],
            weights=self.weights[:number],
            num_foreground=self.num_foreground * share,
            sum_of_weights=self.sum_of_weights * share,
        )


class Assigner(Protocol):
    """Decides which object each location answers for."""

    def __call__(
        self, levels: Sequence[PointLevel], targets: Targets, predictions: PointPredictions
    ) -> Tensor:
        """Match the locations of a batch.

        Args:
            levels: the locations, fine to coarse.
            targets: the objects, boxes in the locations' dtype.
            predictions: the head's, of all levels, for assigners that look at them.

        Returns:
            (B, A) int64, the slot of the object in [0, N), -1 for background.
        """
        ...


class PointDetector(nn.Module):
    """The detector; see `lgd.detectors.protocol.Detector`.

    Args:
        backbone: bottom-up network, (B, 3, H, W) -> maps by name.
        neck: feature pyramid over it.
        assigner: which location answers for which object.
        num_classes: K.
        pixel_mean: of each channel of the images.
        pixel_std: of each channel of the images.
        num_convs: convolutions of each tower of the head.
        prior_prob: score of every class of the fresh head.
        centerness: the tower that predicts the centreness, which then weighs the box loss and the scores;
            None for none.
        distances_in_strides: predict rectified distances in strides, else the logarithm of pixels.
        location_offset: where in its cell a location lies, in strides.
        box_reg_weights: the head predicts distances times these factors, (left, top, right, bottom).
        focal_loss_alpha: weight of positives.
        focal_loss_gamma: focusing exponent.
        box_loss_weight: factor of the box loss.
        sync_normalizers: count objects over all ranks, so that N ranks give the gradient of one.
        score_thresh_test: detections have a class score above this.
        topk_candidates_test: candidates of each level, and no more than it has locations.
        nms_thresh_test: overlap within a class above which the worse box goes; None for no suppression.
        detections_per_image: at most so many.
        reference_order: leave the order of equal scores to torch's unstable sort, as the reference does. They
            are common where the teacher sees no object: its features are the same all over. Off: the first
            location wins.
        num_bins: see `PointHead`.

    Raises:
        ValueError: factors of the distances that are not positive, or channels that don't divide into groups.
    """

    static_parts = ("extract_features", "_predict_joined", "_hold_against")
    head_parts = ("head",)

    def __init__(
        self,
        *,
        backbone: nn.Module,
        neck: FPN,
        assigner: Assigner,
        num_classes: int,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        num_convs: int = 4,
        prior_prob: float = 0.01,
        centerness: Literal["box", "class"] | None = "box",
        distances_in_strides: bool = True,
        location_offset: float = 0.5,
        box_reg_weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0),
        focal_loss_alpha: float = 0.25,
        focal_loss_gamma: float = 2.0,
        box_loss_weight: float = 1.0,
        sync_normalizers: bool = True,
        score_thresh_test: float = 0.05,
        topk_candidates_test: int = 1000,
        nms_thresh_test: float | None = 0.6,
        detections_per_image: int = 100,
        reference_order: bool = False,
        num_bins: int | None = None,
    ) -> None:
        super().__init__()
        if min(box_reg_weights) <= 0:
            raise ValueError(f"factors of the distances must be positive, not {box_reg_weights}")
        self.channels = neck.channels
        self.strides = dict(neck.strides)
        self.num_classes = num_classes
        self.assigner = assigner
        self.location_offset = location_offset
        self.box_reg_weights = box_reg_weights
        self.focal_loss_alpha = focal_loss_alpha
        self.focal_loss_gamma = focal_loss_gamma
        self.box_loss_weight = box_loss_weight
        self.sync_normalizers = sync_normalizers
        self.score_thresh_test = score_thresh_test
        self.topk_candidates_test = topk_candidates_test
        self.nms_thresh_test = nms_thresh_test
        self.detections_per_image = detections_per_image
        self.reference_order = reference_order

        self.normalize = PixelNormalizer(pixel_mean, pixel_std)
        self.backbone = backbone
        self.neck = neck
        self.head = PointHead(
            channels=self.channels,
            num_classes=num_classes,
            strides=self.strides,
            num_convs=num_convs,
            prior_prob=prior_prob,
            centerness=centerness,
            distances_in_strides=distances_in_strides,
            num_bins=num_bins,
        )

    def extract_features(self, batch: Batch) -> Features:
        """See `Detector.extract_features`."""
        features: Features = self.neck(self.backbone(self.normalize(batch, self._dtype)))
        return features

    def compute_losses(
        self, features: Features, batch: Batch, assignment: PointAssignment | None = None
    ) -> tuple[dict[str, Tensor], PointAssignment]:
        """See `Detector.compute_losses`; gives "loss_cls", "loss_box_reg" and perhaps "loss_centerness"."""
        (predictions,) = self._predict_joined([features])
        if assignment is None:
            assignment = self.assign(features, batch.targets, predictions)
        return self._hold_against(predictions, assignment), assignment

    def compute_losses_of_both(
        self, features: Features, taught: Features, batch: Batch
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """See `OneStageDetector.compute_losses_of_both`."""
        predictions, taught_predictions = self._predict_joined([features, taught])
        assignment = self.assign(features, batch.targets, predictions)
        return self._hold_against(predictions, assignment), self._hold_against(taught_predictions, assignment)

    @torch.no_grad()
    def assign(self, features: Features, targets: Targets, predictions: PointPredictions) -> PointAssignment:
        """Decide what every location, those in the padding too, has to predict."""
        levels = self._make_levels(features)
        locations = torch.cat([level.locations for level in levels])
        targets = replace(targets, boxes=targets.boxes.to(locations.dtype))
        matches = self.assigner(levels, targets, predictions)
        foreground, slots = matches >= 0, matches.clamp(min=0)
        boxes = targets.boxes.gather(1, slots[..., None].expand(-1, -1, 4))
        distances = torch.stack(side_distances(locations, boxes), dim=-1)
        weights = foreground.to(distances.dtype)
        if self.head.centerness is not None:
            weights = torch.where(foreground, centerness(distances), 0)
        counts = self._average_over_ranks(torch.stack([foreground.to(weights.dtype).sum(), weights.sum()]))
        return PointAssignment(
            labels=torch.where(foreground, targets.labels.gather(1, slots), self.num_classes),
            distances=torch.where(foreground[..., None], distances, 0),
            weights=weights,
            num_foreground=counts[0],
            sum_of_weights=counts[1],
        )

    @torch.no_grad()
    def decode(self, features: Features, batch: Batch) -> PaddedDetections:
        """See `Detector.decode`."""
        predictions, levels = self._predict(features), self._make_levels(features)
        select = partial(select_as_reference, sort_all=True) if self.reference_order else select_candidates
        # By the class score alone.
        found = select(
            [level.logits for level in predictions],
            score_threshold=self.score_thresh_test,
            limits=[self.topk_candidates_test] * len(levels),
            within_positions=True,
        )
        scores = found.logits.sigmoid()
        central = [level.centerness for level in predictions if level.centerness is not None]
        if central:
            scores = (scores * torch.cat(central, dim=1).gather(1, found.positions).sigmoid()).sqrt()
        scores = torch.where(found.logits > -torch.inf, scores, -torch.inf)
        locations = torch.cat([level.locations for level in levels])[found.positions]
        distances = torch.cat([level.distances for level in predictions], dim=1)
        boxes = boxes_around(locations, take_rows(distances, found.positions))
        limits = SelectionLimits(
            self.num_classes, self.nms_thresh_test, self.detections_per_image, self.reference_order
        )
        return to_original_sizes(keep_detections(boxes, scores, found.labels, limits), batch)

    def detect(self, features: Features, batch: Batch) -> list[Detections]:
        """See `Detector.detect`."""
        return self.decode(features, batch).cut()

    def backbone_parameters(self) -> Iterable[nn.Parameter]:
        """See `Detector.backbone_parameters`."""
        return self.backbone.parameters()

    @property
    def num_head_convs(self) -> int:
        """See `DenseDetector.num_head_convs`."""
        return count_convs(self.head.cls_subnet)

    @property
    def positions_per_cell(self) -> int:
        """See `DenseDetector.positions_per_cell`."""
        return 1

    def begin_head(self, features: Features, num_convs: int) -> TowerFeatures:
        """See `DenseDetector.begin_head`."""
        return begin_towers(self.head.towers, features, num_convs)

    def finish_head(self, begun: TowerFeatures, num_convs: int) -> DensePredictions:
        """See `DenseDetector.finish_head`."""
        predictions = join_levels(self._in_pixels(self.head.finish(begun, num_convs)))
        locations = torch.cat([level.locations for level in self._make_levels(begun.for_class)])
        boxes = boxes_around(locations, predictions.distances)
        return DensePredictions(predictions.logits, boxes, predictions.sides)

    def find_foreground(self, assignment: PointAssignment) -> Tensor:
        """See `DenseDetector.find_foreground`."""
        return assignment.labels < self.num_classes

    @property
    def _dtype(self) -> torch.dtype:
        return torch.promote_types(self.head.cls_score.weight.dtype, torch.float32)

    def _predict(self, features: Features) -> list[PointPredictions]:
        """Predictions by level, the distances in pixels."""
        return self._in_pixels(self.head(features))

    def _in_pixels(self, predictions: list[PointPredictions]) -> list[PointPredictions]:
        """The head's own predictions, the distances divided by their factors."""
        if self.box_reg_weights == (1.0, 1.0, 1.0, 1.0):
            return predictions
        weights = predictions[0].distances.new_tensor(self.box_reg_weights)
        return [replace(level, distances=level.distances / weights) for level in predictions]

    def _predict_joined(self, pyramids: Sequence[Features]) -> list[PointPredictions]:
        """Run the head once on all pyramids: the predictions for each, of all levels together."""
        return split_images(join_levels(self._predict(join_pyramids(pyramids))), len(pyramids))

    def _make_levels(self, features: Features) -> list[PointLevel]:
        return [
            PointLevel(
                grid_locations(
                    features[level].shape[-2],
                    features[level].shape[-1],
                    stride,
                    offset=self.location_offset,
                    dtype=self._dtype,
                    device=features[level].device,
                ),
                stride,
            )
            for level, stride in self.strides.items()
        ]

    def _average_over_ranks(self, counts: Tensor) -> Tensor:
        """This rank's divisors for its `counts`; those of all ranks together are at least 1."""
        if not (self.training and self.sync_normalizers):
            return counts.clamp(min=1)
        return all_reduce_sum(counts).clamp(min=1) / get_world_size()

    def _hold_against(self, predictions: PointPredictions, assignment: PointAssignment) -> dict[str, Tensor]:
        """Losses by name."""
        loss_cls = sigmoid_focal_loss(
            predictions.logits, assignment.labels, alpha=self.focal_loss_alpha, gamma=self.focal_loss_gamma
        )
        origin = predictions.distances.new_zeros(2)
        loss_box_reg = giou_loss(
            boxes_around(origin, predictions.distances),
            boxes_around(origin, assignment.distances),
            assignment.weights,
        )
        losses = {
            "loss_cls": loss_cls / assignment.num_foreground,
            "loss_box_reg": loss_box_reg / assignment.sum_of_weights * self.box_loss_weight,
        }
        if predictions.centerness is not None:
            foreground = (assignment.weights > 0).to(predictions.centerness.dtype)
            loss_centerness = F.binary_cross_entropy_with_logits(
                predictions.centerness, assignment.weights, weight=foreground, reduction="sum"
            )
            losses["loss_centerness"] = loss_centerness / assignment.num_foreground
        return losses


def object_chunks(targets: Targets, num_locations: int) -> Iterator[slice]:
    """Slices over the object slots, so long that a slice's pairs with the locations fit into the memory."""
    num_images, num_slots = targets.valid.shape
    size = max(1, _MAX_PAIRS // (num_images * num_locations))
    return (slice(start, start + size) for start in range(0, num_slots, size))
