"""Region proposal network (arXiv 1506.01497, on a feature pyramid: arXiv 1612.03144, section 4.1).

Legend: B images, L levels, R anchors of one cell, A anchors of all levels, N object slots per image,
P proposal slots per image, S sampled anchors per image, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lgd.layers.conv import Conv2d
from lgd.ops.anchors import level_cells, pyramid_anchors
from lgd.ops.boxes import clip_boxes, decode_deltas, encode_foreground
from lgd.ops.losses import smooth_l1_loss
from lgd.ops.matching import BACKGROUND, FOREGROUND, IGNORED, Matches, match_anchors
from lgd.ops.nms import keep_best, keep_best_by_image
from lgd.ops.predictions import fill_slots, flatten_predictions, promote, take_best, take_rows
from lgd.ops.sampling import sample_balanced
from lgd.structures import Batch, Features, Targets

Predictions = list[tuple[Tensor, Tensor]]
"""By level: objectness logits (B, h_l * w_l * R) and box deltas (B, h_l * w_l * R, 4)."""


@dataclass(frozen=True)
class Proposals:
    """Boxes of a batch that may hold objects, best first.

    Attributes:
        boxes: (B, P, 4) xyxy pixels of the canvas, clipped to the image; zeros in the unused slots.
        valid: (B, P) bool, which slots hold a proposal.
    """

    boxes: Tensor
    valid: Tensor


class RPNHead(nn.Module):
    """A 3x3 convolution and, for each anchor, objectness and box deltas; shared by all levels.

    Args:
        channels: C.
        num_anchors: R.
    """

    def __init__(self, channels: int, num_anchors: int) -> None:
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, padding=1)
        self.objectness_logits = nn.Conv2d(channels, num_anchors, 1)
        self.anchor_deltas = nn.Conv2d(channels, num_anchors * 4, 1)
        for conv in (self.conv, self.objectness_logits, self.anchor_deltas):
            nn.init.normal_(conv.weight, std=0.01)
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)

    def forward(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, h, w) -> logits (B, h * w * R) and deltas (B, h * w * R, 4), row by row."""
        x = F.relu(self.conv(feature))
        logits = flatten_predictions(self.objectness_logits(x), 1).squeeze(-1)
        return logits, flatten_predictions(self.anchor_deltas(x), 4)


class RPN(nn.Module):
    """Proposes boxes, and learns to from anchors sampled at random.

    Args:
        channels: C.
        strides: pixels per cell of the levels it reads, fine to coarse.
        anchor_sizes: square roots of the anchors' areas by level, or one row for every level.
        aspect_ratios: height / width of the anchors by level, or one row for every level.
        anchor_offset: of the anchors' centres, in cells.
        iou_thresholds: below the first an anchor is background, from the second on foreground.
        boundary_thresh: anchors that reach so many pixels out of the image don't count; -1 counts all.
        batch_size_per_image: anchors sampled from an image.
        positive_fraction: largest share of foreground among them.
        box_reg_weights: factors of the four deltas.
        smooth_l1_beta: 0 for the L1 loss.
        box_reg_loss_weight: factor of the box loss.
        loss_weight: factor of both losses.
        pre_nms_topk_train: proposals of each level before suppression, in training.
        pre_nms_topk_test: the same, in evaluation.
        post_nms_topk_train: proposals of an image after it, in training.
        post_nms_topk_test: the same, in evaluation.
        nms_thresh: overlap above which the worse of two proposals of a level goes.
        min_size: proposals have sides longer than this, pixels.
        reference_order: suppress image by image and leave the order of equal scores to torch's and
            torchvision's sorting, as the reference. They are common where the teacher sees no object: its
            features are the same all over. Off: all images at once, and of equal scores the first wins.

    Raises:
        ValueError: anchors that don't fit the levels.
    """

    cell_anchors: Tensor

    def __init__(
        self,
        *,
        channels: int,
        strides: Mapping[str, int],
        anchor_sizes: Sequence[Sequence[float]],
        aspect_ratios: Sequence[Sequence[float]],
        anchor_offset: float = 0.0,
        iou_thresholds: tuple[float, float] = (0.3, 0.7),
        boundary_thresh: float = -1,
        batch_size_per_image: int = 256,
        positive_fraction: float = 0.5,
        box_reg_weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0),
        smooth_l1_beta: float = 0.0,
        box_reg_loss_weight: float = 1.0,
        loss_weight: float = 1.0,
        pre_nms_topk_train: int = 2000,
        pre_nms_topk_test: int = 1000,
        post_nms_topk_train: int = 1000,
        post_nms_topk_test: int = 1000,
        nms_thresh: float = 0.7,
        min_size: float = 0.0,
        reference_order: bool = False,
    ) -> None:
        super().__init__()
        self.strides = dict(strides)
        self.anchor_offset = anchor_offset
        self.iou_thresholds = iou_thresholds
        self.boundary_thresh = boundary_thresh
        self.batch_size_per_image = batch_size_per_image
        self.positive_fraction = positive_fraction
        self.box_reg_weights = box_reg_weights
        self.smooth_l1_beta = smooth_l1_beta
        self.box_reg_loss_weight = box_reg_loss_weight
        self.loss_weight = loss_weight
        self.pre_nms_topk_train = pre_nms_topk_train
        self.pre_nms_topk_test = pre_nms_topk_test
        self.post_nms_topk_train = post_nms_topk_train
        self.post_nms_topk_test = post_nms_topk_test
        self.nms_thresh = nms_thresh
        self.min_size = min_size
        self.reference_order = reference_order
        cells = level_cells(anchor_sizes, aspect_ratios, len(self.strides))
        self.rpn_head = RPNHead(channels, cells.shape[1])
        # Kept in float64 until used, so that a float64 model gets these numbers unrounded.
        self.register_buffer("cell_anchors", cells, persistent=False)

    def compute_losses(self, features: Features, batch: Batch) -> tuple[dict[str, Tensor], Proposals]:
        """Give "loss_rpn_cls" and "loss_rpn_loc", and the proposals from the same predictions."""
        predictions, anchors = self._predict(features), self._make_anchors(features)
        return self._hold_against(predictions, anchors, batch), self._select(
            predictions, anchors, batch.sizes
        )

    def propose(self, features: Features, batch: Batch) -> Proposals:
        """Propose boxes on `features`, {level: (B, C, h_l, w_l)}; no gradient flows through them."""
        return self._select(self._predict(features), self._make_anchors(features), batch.sizes)

    @torch.no_grad()
    def assign(self, anchors: Tensor, targets: Targets, sizes: Tensor) -> Matches:
        """Match the anchors (A, 4), those in the padding too, to the objects of each image.

        With a `boundary_thresh` from 0 on, anchors out of the image of `sizes` (B, 2) are IGNORED.
        """
        matches = match_anchors(
            targets.boxes.to(anchors.dtype),
            targets.valid,
            anchors,
            thresholds=self.iou_thresholds,
            allow_low_quality=True,
        )
        if self.boundary_thresh < 0:
            return matches
        far_sides = sizes.flip(1).to(anchors.dtype)[:, None] + self.boundary_thresh
        inside = (anchors[:, :2] >= -self.boundary_thresh) & (anchors[:, 2:] < far_sides)
        return Matches(matches.indices, torch.where(inside.all(dim=-1), matches.labels, IGNORED))

    def _predict(self, features: Features) -> Predictions:
        outputs = [self.rpn_head(features[level]) for level in self.strides]
        return [(promote(logits), promote(deltas)) for logits, deltas in outputs]

    def _make_anchors(self, features: Features) -> list[Tensor]:
        """[(h_l * w_l * R, 4)] of every level, in the model's dtype."""
        cells = self.cell_anchors.to(torch.promote_types(self.rpn_head.conv.weight.dtype, torch.float32))
        return pyramid_anchors(cells, features, self.strides, self.anchor_offset)

    def _hold_against(
        self, predictions: Predictions, anchors_by_level: list[Tensor], batch: Batch
    ) -> dict[str, Tensor]:
        """Compute the losses on anchors sampled from each image."""
        logits, deltas = (torch.cat(parts, dim=1) for parts in zip(*predictions, strict=True))
        anchors = torch.cat(anchors_by_level)
        matches = self.assign(anchors, batch.targets, batch.sizes)
        samples = sample_balanced(
            matches.labels == FOREGROUND,
            matches.labels == BACKGROUND,
            num_samples=self.batch_size_per_image,
            positive_fraction=self.positive_fraction,
        )
        objects = matches.indices.gather(1, samples.indices)
        sampled, boxes = anchors[samples.indices], take_rows(batch.targets.boxes.to(anchors.dtype), objects)
        target_deltas = encode_foreground(sampled, boxes, samples.foreground, self.box_reg_weights)
        loss_loc = smooth_l1_loss(
            take_rows(deltas, samples.indices), target_deltas, samples.foreground, beta=self.smooth_l1_beta
        )
        losses = F.binary_cross_entropy_with_logits(
            logits.gather(1, samples.indices), samples.foreground.to(logits.dtype), reduction="none"
        )
        loss_cls = (losses * samples.valid.to(losses.dtype)).sum()
        scale = self.loss_weight / (self.batch_size_per_image * len(logits))
        return {"loss_rpn_cls": loss_cls * scale, "loss_rpn_loc": loss_loc * scale * self.box_reg_loss_weight}

    @torch.no_grad()
    def _select(
        self, predictions: Predictions, anchors_by_level: list[Tensor], image_sizes: Tensor
    ) -> Proposals:
        """Keep the best boxes of each level, suppress, and keep the best of each image."""
        candidates = [
            self._best_of_level(logits, deltas, anchors)
            for (logits, deltas), anchors in zip(predictions, anchors_by_level, strict=True)
        ]
        scores, boxes = (torch.cat(parts, dim=1) for parts in zip(*candidates, strict=True))
        boxes = clip_boxes(boxes, image_sizes[:, None])
        sound = torch.isfinite(scores) & torch.isfinite(boxes).all(dim=-1)
        sound &= (boxes[..., 2:] - boxes[..., :2] > self.min_size).all(dim=-1)
        scores = torch.where(sound, scores, -torch.inf)
        levels = [torch.full_like(x[0], level, dtype=torch.int64) for level, (x, _) in enumerate(candidates)]
        limit = self.post_nms_topk_train if self.training else self.post_nms_topk_test
        keep = keep_best_by_image if self.reference_order else keep_best
        indices, valid = keep(boxes, scores, torch.cat(levels), len(levels), self.nms_thresh, limit)
        return Proposals(torch.where(valid[..., None], take_rows(boxes, indices), 0), valid)

    def _best_of_level(self, logits: Tensor, deltas: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (B, T) and boxes (B, T, 4) of the best anchors of one level."""
        limit = self.pre_nms_topk_train if self.training else self.pre_nms_topk_test
        scores, indices = take_best(logits, limit, stable=not self.reference_order)
        if torch.compiler.is_exporting():
            scores, indices = fill_slots(scores, limit, -torch.inf), fill_slots(indices, limit, 0)
        return scores, decode_deltas(anchors[indices], take_rows(deltas, indices), self.box_reg_weights)
