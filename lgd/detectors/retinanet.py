"""RetinaNet (arXiv 1708.02002).

Legend: B images on a canvas H x W, L levels, A anchors of all levels, N object slots per image, K classes,
C channels, R anchors of one cell.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from lgd.detectors.dense import (
    Towers,
    begin_towers,
    count_convs,
    finish_towers,
    init_head,
    join_pyramids,
    select_as_reference,
    select_candidates,
)
from lgd.detectors.detections import SelectionLimits, keep_detections, to_original_sizes
from lgd.detectors.protocol import DensePredictions, TowerFeatures
from lgd.layers.conv import Conv2d
from lgd.layers.fpn import FPN
from lgd.layers.pixels import PixelNormalizer
from lgd.ops.anchors import level_cells, pyramid_anchors
from lgd.ops.boxes import decode_deltas, encode_deltas
from lgd.ops.losses import reference_focal_loss, sigmoid_focal_loss, smooth_l1_loss
from lgd.ops.matching import FOREGROUND, IGNORED, match_anchors
from lgd.ops.predictions import flatten_predictions, promote, take_rows
from lgd.ranks.process_group import all_reduce_sum, get_world_size
from lgd.structures import Batch, Detections, Features, PaddedDetections, Targets


@dataclass(frozen=True)
class AnchorAssignment:
    """What every anchor of a batch has to predict.

    Attributes:
        labels: (B, A) int64, the class in [0, K), K for background, -1 for anchors that don't count.
        deltas: (B, A, 4) box deltas of foreground anchors, 0 elsewhere.
        share: of the images that the moving average of the foreground anchors counts, in (0, 1].
    """

    labels: Tensor
    deltas: Tensor
    share: float = 1.0

    def first(self, number: int) -> AnchorAssignment:
        """See `Assignment.first`."""
        share = self.share * number / len(self.labels)
        return AnchorAssignment(self.labels[:number], self.deltas[:number], share)


class RetinaNetHead(nn.Module):
    """Two towers of 3x3 convolutions, shared by all levels: class logits and box deltas.

    Args:
        channels: C.
        num_classes: K.
        num_anchors: R.
        num_convs: convolutions of each tower before the predicting one.
        prior_prob: foreground probability that the fresh head predicts everywhere.
    """

    def __init__(
        self, *, channels: int, num_classes: int, num_anchors: int, num_convs: int, prior_prob: float
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.cls_subnet = _make_tower(channels, num_convs)
        self.bbox_subnet = _make_tower(channels, num_convs)
        self.cls_score = Conv2d(channels, num_anchors * num_classes, 3, padding=1)
        self.bbox_pred = Conv2d(channels, num_anchors * 4, 3, padding=1)
        init_head(self, self.cls_score, prior_prob)

    @property
    def towers(self) -> Towers:
        """What lies before the predicting convolutions."""
        return self.cls_subnet, self.bbox_subnet

    def forward(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, h, w) -> logits (B, h * w * R, K) and deltas (B, h * w * R, 4), row by row."""
        return self.predict(self.cls_subnet(feature), self.bbox_subnet(feature))

    def predict(self, for_class: Tensor, for_box: Tensor) -> tuple[Tensor, Tensor]:
        """The same from the ends of the two towers, (B, C, h, w) each."""
        logits, deltas = self.cls_score(for_class), self.bbox_pred(for_box)
        return flatten_predictions(logits, self.num_classes), flatten_predictions(deltas, 4)


class RetinaNet(nn.Module):
    """The detector; see `lgd.detectors.protocol.Detector`.

    Args:
        backbone: bottom-up network, (B, 3, H, W) -> maps by name.
        neck: feature pyramid over it.
        num_classes: K.
        anchor_sizes: sizes of the anchors in pixels by level, or one row for every level.
        aspect_ratios: height / width of the anchors by level, or one row for every level.
        pixel_mean: of each channel of the images.
        pixel_std: of each channel of the images.
        anchor_offset: of the anchors' centres, in cells.
        num_convs: convolutions of each tower of the head.
        prior_prob: foreground probability of the fresh head.
        iou_thresholds: below the first an anchor is background, from the second on foreground.
        focal_loss_alpha: weight of positives.
        focal_loss_gamma: focusing exponent.
        smooth_l1_beta: 0 for the L1 loss.
        box_reg_weights: factors of the four deltas.
        score_thresh_test: detections score more than this.
        topk_candidates_test: candidates of each level.
        nms_thresh_test: overlap within a class above which the worse box goes.
        detections_per_image: at most so many.
        reference_normalizer: count positives as the reference does: on this rank alone, and once more for
            every further call on the same batch (the teacher's), so that student and teacher are divided by
            different numbers; take the focal loss in float32 even in a float64 model, and leave the order of
            equal scores to torch's quicker sort, as it does. Off: over all ranks, once per step; N ranks then
            give the gradient of one.

    Raises:
        ValueError: anchors that don't fit the neck's levels.
    """

    static_parts = ("extract_features", "_sum_losses")
    head_parts = ("head",)
    cell_anchors: Tensor
    loss_normalizer: Tensor

    def __init__(
        self,
        *,
        backbone: nn.Module,
        neck: FPN,
        num_classes: int,
        anchor_sizes: Sequence[Sequence[float]],
        aspect_ratios: Sequence[Sequence[float]],
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        anchor_offset: float = 0.0,
        num_convs: int = 4,
        prior_prob: float = 0.01,
        iou_thresholds: tuple[float, float] = (0.4, 0.5),
        focal_loss_alpha: float = 0.25,
        focal_loss_gamma: float = 2.0,
        smooth_l1_beta: float = 0.0,
        box_reg_weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0),
        score_thresh_test: float = 0.05,
        topk_candidates_test: int = 1000,
        nms_thresh_test: float = 0.5,
        detections_per_image: int = 100,
        reference_normalizer: bool = False,
    ) -> None:
        super().__init__()
        self.channels = neck.channels
        self.strides = dict(neck.strides)
        self.num_classes = num_classes
        self.anchor_offset = anchor_offset
        self.iou_thresholds = iou_thresholds
        self.focal_loss_alpha = focal_loss_alpha
        self.focal_loss_gamma = focal_loss_gamma
        self.smooth_l1_beta = smooth_l1_beta
        self.box_reg_weights = box_reg_weights
        self.score_thresh_test = score_thresh_test
        self.topk_candidates_test = topk_candidates_test
        self.nms_thresh_test = nms_thresh_test
        self.detections_per_image = detections_per_image
        self.reference_normalizer = reference_normalizer

        self.normalize = PixelNormalizer(pixel_mean, pixel_std)
        self.backbone = backbone
        self.neck = neck
        cells = level_cells(anchor_sizes, aspect_ratios, len(self.strides))
        self.head = RetinaNetHead(
            channels=self.channels,
            num_classes=num_classes,
            num_anchors=cells.shape[1],
            num_convs=num_convs,
            prior_prob=prior_prob,
        )
        # Kept in float64 until used, so that a float64 model gets these numbers unrounded.
        self.register_buffer("cell_anchors", cells, persistent=False)
        self.register_buffer("loss_normalizer", torch.tensor(100.0))

    def extract_features(self, batch: Batch) -> Features:
        """See `Detector.extract_features`."""
        features: Features = self.neck(self.backbone(self.normalize(batch, self.loss_normalizer.dtype)))
        return features

    def compute_losses(
        self, features: Features, batch: Batch, assignment: AnchorAssignment | None = None
    ) -> tuple[dict[str, Tensor], AnchorAssignment]:
        """See `Detector.compute_losses`; gives "loss_cls" and "loss_box_reg"."""
        first_call = assignment is None
        if assignment is None:
            assignment = self.assign(features, batch.targets)
        (sums,) = self._sum_losses([features], assignment)
        return self._normalize_losses(sums, assignment, first_call), assignment

    def compute_losses_of_both(
        self, features: Features, taught: Features, batch: Batch
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """See `OneStageDetector.compute_losses_of_both`."""
        assignment = self.assign(features, batch.targets)
        sums, taught_sums = self._sum_losses([features, taught], assignment)
        losses = self._normalize_losses(sums, assignment, first_call=True)
        return losses, self._normalize_losses(taught_sums, assignment, first_call=False)

    @torch.no_grad()
    def assign(self, features: Features, targets: Targets) -> AnchorAssignment:
        """Match every anchor, those in the padding too, to the objects of its image."""
        anchors = torch.cat(self._make_anchors(features))
        boxes = targets.boxes.to(anchors.dtype)
        matches = match_anchors(
            boxes, targets.valid, anchors, thresholds=self.iou_thresholds, allow_low_quality=True
        )
        foreground = matches.labels == FOREGROUND
        labels = targets.labels.gather(1, matches.indices)
        labels = torch.where(foreground, labels, self.num_classes)
        labels = torch.where(matches.labels == IGNORED, -1, labels)
        matched_boxes = boxes.gather(1, matches.indices[..., None].expand(-1, -1, 4))
        # The other anchors are matched to themselves, so that their deltas are 0 and not log(0).
        matched_boxes = torch.where(foreground[..., None], matched_boxes, anchors)
        return AnchorAssignment(labels, encode_deltas(anchors, matched_boxes, self.box_reg_weights))

    @torch.no_grad()
    def decode(self, features: Features, batch: Batch) -> PaddedDetections:
        """See `Detector.decode`."""
        logits, deltas = self._predict(features)
        select = (
            partial(select_as_reference, sort_all=False) if self.reference_normalizer else select_candidates
        )
        found = select(
            logits,
            score_threshold=self.score_thresh_test,
            limits=[self.topk_candidates_test] * len(logits),
        )
        anchors = torch.cat(self._make_anchors(features))[found.positions]
        chosen = take_rows(torch.cat(deltas, dim=1), found.positions)
        boxes = decode_deltas(anchors, chosen, self.box_reg_weights)
        limits = SelectionLimits(
            self.num_classes, self.nms_thresh_test, self.detections_per_image, self.reference_normalizer
        )
        kept = keep_detections(boxes, found.logits, found.labels, limits)
        scores = torch.where(kept.valid, kept.scores.sigmoid(), 0)
        return to_original_sizes(replace(kept, scores=scores), batch)

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
        return self.cell_anchors.shape[1]

    def begin_head(self, features: Features, num_convs: int) -> TowerFeatures:
        """See `DenseDetector.begin_head`."""
        return begin_towers(self.head.towers, features, num_convs)

    def finish_head(self, begun: TowerFeatures, num_convs: int) -> DensePredictions:
        """See `DenseDetector.finish_head`."""
        ends = finish_towers(self.head.towers, begun, num_convs)
        predictions = [
            self.head.predict(ends.for_class[level], ends.for_box[level]) for level in self.strides
        ]
        logits, deltas = (promote(torch.cat(parts, dim=1)) for parts in zip(*predictions, strict=True))
        anchors = torch.cat(self._make_anchors(ends.for_class))
        return DensePredictions(logits, decode_deltas(anchors, deltas, self.box_reg_weights))

    def find_foreground(self, assignment: AnchorAssignment) -> Tensor:
        """See `DenseDetector.find_foreground`."""
        return (assignment.labels >= 0) & (assignment.labels < self.num_classes)

    def _predict(self, features: Features) -> tuple[list[Tensor], list[Tensor]]:
        """Logits [(B, A_l, K)] and deltas [(B, A_l, 4)] of every level."""
        predictions = [self.head(features[level]) for level in self.strides]
        logits, deltas = ([promote(x) for x in parts] for parts in zip(*predictions, strict=True))
        return logits, deltas

    def _sum_losses(
        self, pyramids: Sequence[Features], assignment: AnchorAssignment
    ) -> list[dict[str, Tensor]]:
        """Run the head once on all pyramids: the losses of each, summed over the anchors."""
        parts = self._predict(join_pyramids(pyramids))
        logits, deltas = (torch.cat(levels, dim=1).chunk(len(pyramids)) for levels in parts)
        focal_loss = reference_focal_loss if self.reference_normalizer else sigmoid_focal_loss
        foreground = self.find_foreground(assignment)
        return [
            {
                "loss_cls": focal_loss(
                    each_logits, assignment.labels, alpha=self.focal_loss_alpha, gamma=self.focal_loss_gamma
                ),
                "loss_box_reg": smooth_l1_loss(
                    each_deltas, assignment.deltas, foreground, beta=self.smooth_l1_beta
                ),
            }
            for each_logits, each_deltas in zip(logits, deltas, strict=True)
        ]

    def _normalize_losses(
        self, sums: dict[str, Tensor], assignment: AnchorAssignment, first_call: bool
    ) -> dict[str, Tensor]:
        normalizer = self._update_normalizer(self.find_foreground(assignment), assignment.share, first_call)
        return {name: loss / normalizer.to(loss.dtype) for name, loss in sums.items()}

    def _make_anchors(self, features: Features) -> list[Tensor]:
        """[(h_l * w_l * R, 4)] of every level, in the model's dtype."""
        cells = self.cell_anchors.to(self.loss_normalizer.dtype)
        return pyramid_anchors(cells, features, self.strides, self.anchor_offset)

    @torch.no_grad()
    def _update_normalizer(self, foreground: Tensor, share: float, first_call: bool) -> Tensor:
        """Advance the moving average of the number of foreground anchors; return this rank's divisor.

        Where `foreground` is of a share of the images, so is the divisor.

        In evaluation batches are others than those of the average: each has its own number.
        """
        if not self.training:
            return foreground.sum().to(self.loss_normalizer.dtype).clamp(min=1)
        if first_call or self.reference_normalizer:
            num_foreground = foreground.sum().to(self.loss_normalizer.dtype) / share
            if not self.reference_normalizer:
                num_foreground = all_reduce_sum(num_foreground)
            self.loss_normalizer.mul_(0.9).add_(num_foreground.clamp(min=1), alpha=0.1)
        # A copy: backward still needs this value when the buffer has moved on.
        return self.loss_normalizer * share / (1 if self.reference_normalizer else get_world_size())


def _make_tower(channels: int, num_convs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(num_convs):
        layers += [Conv2d(channels, channels, 3, padding=1), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)
