"""What is done with each proposed region: class, box, and mask.

Sources: Fast R-CNN (arXiv 1504.08083), Mask R-CNN (arXiv 1703.06870).
Legend: B images, L levels, N object slots and P proposal slots per image, S sampled regions per image,
R regions of the whole batch, K classes, C channels, M the side of a region's map.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lgd.detectors.detections import SelectionLimits, keep_detections, to_original_sizes
from lgd.detectors.mask_head import MaskHead, mask_loss
from lgd.detectors.rpn import Proposals
from lgd.layers.conv import ConvNorm
from lgd.ops.boxes import clip_boxes, decode_deltas, encode_foreground
from lgd.ops.losses import smooth_l1_loss
from lgd.ops.matching import BACKGROUND, FOREGROUND, match_anchors
from lgd.ops.polygons import rasterize_in_boxes
from lgd.ops.predictions import promote, take_above, take_best, take_rows
from lgd.ops.roi_align import multilevel_roi_align
from lgd.ops.sampling import sample_balanced
from lgd.structures import Batch, Features, Outlines, PaddedDetections, Targets


@dataclass(frozen=True)
class Regions:
    """Regions to train on, S of each image.

    Attributes:
        boxes: (B, S, 4) xyxy pixels of the canvas.
        labels: (B, S) int64, the class in [0, K), K for background, -1 for an unused slot.
        objects: (B, S) int64 in [0, N), the object that a foreground region answers for.
    """

    boxes: Tensor
    labels: Tensor
    objects: Tensor


class BoxHead(nn.Module):
    """Convolutions, then fully connected layers, over a region's map.

    Args:
        channels: C.
        num_convs: 3x3 convolutions.
        conv_channels: their width.
        norm: of the convolutions, a name for `lgd.layers.norm.make_norm`.
        num_fcs: fully connected layers.
        fc_channels: their width.
        resolution: M.
        sampling_ratio: see `lgd.ops.roi_align.multilevel_roi_align`.

    Attributes:
        out_channels: width of what it returns.
    """

    def __init__(
        self,
        *,
        channels: int,
        num_convs: int = 0,
        conv_channels: int = 256,
        norm: str = "",
        num_fcs: int = 2,
        fc_channels: int = 1024,
        resolution: int = 7,
        sampling_ratio: int = 0,
    ) -> None:
        super().__init__()
        self.resolution = resolution
        self.sampling_ratio = sampling_ratio
        self.conv_names = [f"conv{index + 1}" for index in range(num_convs)]
        self.fc_names = [f"fc{index + 1}" for index in range(num_fcs)]
        for name in self.conv_names:
            conv = ConvNorm(channels, conv_channels, 3, norm=norm)
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)
            self.add_module(name, conv)
            channels = conv_channels
        width = channels * resolution**2
        for name in self.fc_names:
            linear = nn.Linear(width, fc_channels)
            nn.init.kaiming_uniform_(linear.weight, a=1)
            nn.init.zeros_(linear.bias)
            self.add_module(name, linear)
            width = fc_channels
        self.out_channels = width

    def forward(self, pooled: Tensor) -> Tensor:
        """(R, C, M, M) -> (R, out_channels)."""
        x = pooled
        for name in self.conv_names:
            x = F.relu(self.get_submodule(name)(x))
        x = x.flatten(1)
        for name in self.fc_names:
            x = F.relu(self.get_submodule(name)(x))
        return x


class BoxPredictor(nn.Module):
    """Class logits and box deltas of a region.

    Args:
        in_channels: width of what it reads.
        num_classes: K.
        class_agnostic: one box whatever the class, instead of one for each.
    """

    def __init__(self, *, in_channels: int, num_classes: int, class_agnostic: bool = False) -> None:
        super().__init__()
        self.cls_score = nn.Linear(in_channels, num_classes + 1)
        self.bbox_pred = nn.Linear(in_channels, 4 if class_agnostic else 4 * num_classes)
        for layer, std in ((self.cls_score, 0.01), (self.bbox_pred, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(R, in_channels) -> logits (R, K + 1), background last, and deltas (R, K or 1, 4)."""
        return self.cls_score(x), self.bbox_pred(x).view(x.shape[0], -1, 4)


class RoIHeads(nn.Module):
    """Classifies proposals, refines their boxes and, with a mask head, outlines the objects in them.

    Args:
        num_classes: K.
        strides: pixels per cell of the levels that regions are pooled from, fine to coarse.
        box_head: reads the regions.
        box_predictor: follows it.
        mask_head: predicts masks; None for none.
        iou_thresholds: a region is background below the first, foreground from the second on.
        batch_size_per_image: regions sampled from an image.
        positive_fraction: largest share of foreground among them.
        append_objects: the objects' own boxes are proposals too, in training.
        box_reg_weights: factors of the four deltas.
        smooth_l1_beta: 0 for the L1 loss.
        box_reg_loss_weight: factor of the box loss.
        score_thresh_test: detections score more than this.
        nms_thresh_test: overlap within a class above which the worse box goes.
        detections_per_image: at most so many.
        reference_order: leave the order of equal scores to torchvision's sorting, and the order of sums in
            pooling to its operator, as the reference. Off: the first proposal wins.

    Raises:
        ValueError: strides that don't double.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        strides: Mapping[str, int],
        box_head: BoxHead,
        box_predictor: BoxPredictor,
        mask_head: MaskHead | None = None,
        iou_thresholds: tuple[float, float] = (0.5, 0.5),
        batch_size_per_image: int = 512,
        positive_fraction: float = 0.25,
        append_objects: bool = True,
        box_reg_weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0),
        smooth_l1_beta: float = 0.0,
        box_reg_loss_weight: float = 1.0,
        score_thresh_test: float = 0.05,
        nms_thresh_test: float = 0.5,
        detections_per_image: int = 100,
        reference_order: bool = False,
    ) -> None:
        super().__init__()
        if any(coarse != 2 * fine for fine, coarse in pairwise(strides.values())):
            raise ValueError(f"regions are pooled from levels whose strides double, not {dict(strides)}")
        self.num_classes = num_classes
        self.strides = dict(strides)
        self.box_head = box_head
        self.box_predictor = box_predictor
        self.mask_head = mask_head
        self.iou_thresholds = iou_thresholds
        self.batch_size_per_image = batch_size_per_image
        self.positive_fraction = positive_fraction
        self.append_objects = append_objects
        self.box_reg_weights = box_reg_weights
        self.smooth_l1_beta = smooth_l1_beta
        self.box_reg_loss_weight = box_reg_loss_weight
        self.score_thresh_test = score_thresh_test
        self.nms_thresh_test = nms_thresh_test
        self.detections_per_image = detections_per_image
        self.reference_order = reference_order

    def compute_losses(self, features: Features, proposals: Proposals, targets: Targets) -> dict[str, Tensor]:
        """Give "loss_cls", "loss_box_reg" and, with a mask head, "loss_mask".

        Args:
            features: {level: (B, C, h_l, w_l)}.
            proposals: P of each image.
            targets: with outlines where there is a mask head.

        Raises:
            ValueError: a mask head, and targets without outlines.
        """
        if self.mask_head is not None and targets.outlines is None:
            raise ValueError(
                "Mask R-CNN trains on masks, and these targets have none; load the masks with the boxes, "
                "or set MODEL.MASK_ON False"
            )
        regions = self.sample(proposals, targets)
        losses = self._box_losses(features, regions, targets)
        if self.mask_head is not None:
            assert targets.outlines is not None
            losses["loss_mask"] = self._mask_loss(self.mask_head, features, regions, targets.outlines)
        return losses

    @torch.no_grad()
    def sample(self, proposals: Proposals, targets: Targets) -> Regions:
        """Draw regions from the proposals and match them to the objects.

        The slots are S = `batch_size_per_image`, or as many as there are proposals (and objects).
        """
        boxes, valid = proposals.boxes, proposals.valid
        gt_boxes = targets.boxes.to(boxes.dtype)
        if self.append_objects:
            boxes, valid = torch.cat([boxes, gt_boxes], dim=1), torch.cat([valid, targets.valid], dim=1)
        matches = match_anchors(
            gt_boxes, targets.valid, boxes, thresholds=self.iou_thresholds, allow_low_quality=False
        )
        samples = sample_balanced(
            (matches.labels == FOREGROUND) & valid,
            (matches.labels == BACKGROUND) & valid,
            num_samples=self.batch_size_per_image,
            positive_fraction=self.positive_fraction,
        )
        objects = matches.indices.gather(1, samples.indices)
        labels = torch.where(samples.foreground, targets.labels.gather(1, objects), self.num_classes)
        labels = torch.where(samples.valid, labels, -1)
        return Regions(take_rows(boxes, samples.indices), labels, objects)

    @torch.no_grad()
    def decode(self, features: Features, proposals: Proposals, batch: Batch) -> PaddedDetections:
        """Detect objects among the proposals; see `Detector.decode`."""
        logits, deltas = self._predict_boxes(features, proposals.boxes)
        scores = logits.softmax(dim=-1)[..., :-1]
        sure = (scores > self.score_thresh_test) & proposals.valid[..., None]
        scores, pairs = self._select(torch.where(sure, scores, -torch.inf))
        rows, labels = pairs // self.num_classes, pairs % self.num_classes
        if deltas.shape[2] > 1:
            deltas = take_rows(deltas.flatten(1, 2), pairs)
        else:
            deltas = take_rows(deltas.squeeze(2), rows)
        boxes = decode_deltas(take_rows(proposals.boxes, rows), deltas, self.box_reg_weights)
        boxes = clip_boxes(boxes, batch.sizes[:, None])
        limits = SelectionLimits(
            self.num_classes, self.nms_thresh_test, self.detections_per_image, self.reference_order
        )
        found = keep_detections(boxes, scores, labels, limits)
        if self.mask_head is not None:
            found = replace(found, masks=self._predict_masks(self.mask_head, features, found))
        return to_original_sizes(found, batch)

    def _select(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (B, T) of all pairs of row and class that count, and the pairs, of (B, P, K); then -inf."""
        if torch.compiler.is_exporting():
            # A row's scores sum up to 1: no more of them are above the threshold.
            above = math.ceil(1 / self.score_thresh_test) if self.score_thresh_test > 0 else self.num_classes
            return take_best(scores.flatten(1), scores.shape[1] * min(above, self.num_classes))
        return take_above(scores.flatten(1), -torch.inf)  # few of very many count

    def _predict_masks(self, mask_head: MaskHead, features: Features, found: PaddedDetections) -> Tensor:
        """(B, D, M, M) probabilities in boxes that lie on the canvas."""
        num_images, num_slots = found.valid.shape
        rows = torch.arange(num_images * num_slots, device=found.valid.device)
        if not torch.compiler.is_exporting():
            # A host sync: the mask head is costly, so it gets the detections there are.
            rows = rows[found.valid.flatten()]
        images, boxes = rows // num_slots, found.boxes.flatten(0, 1)[rows]
        pooled = self._pool(mask_head, features, boxes, images)
        masks: Tensor = mask_head(pooled, found.labels.flatten()[rows]).sigmoid()
        side = masks.shape[-1]
        every = masks.new_zeros(num_images * num_slots, side, side).index_put((rows,), masks)
        return every.view(num_images, num_slots, side, side)

    def _box_losses(self, features: Features, regions: Regions, targets: Targets) -> dict[str, Tensor]:
        logits, deltas = self._predict_boxes(features, regions.boxes)
        labels = regions.labels
        foreground = (labels >= 0) & (labels < self.num_classes)
        num_regions = (labels >= 0).sum().clamp(min=1)
        loss_cls = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-1, reduction="sum")
        columns = torch.where(foreground, labels, 0) if deltas.shape[2] > 1 else torch.zeros_like(labels)
        chosen = deltas.gather(2, columns[..., None, None].expand(-1, -1, 1, 4)).squeeze(2)
        gt_boxes = take_rows(targets.boxes.to(regions.boxes.dtype), regions.objects)
        gt_deltas = encode_foreground(regions.boxes, gt_boxes, foreground, self.box_reg_weights)
        loss_box_reg = smooth_l1_loss(chosen, gt_deltas, foreground, beta=self.smooth_l1_beta)
        return {
            "loss_cls": loss_cls / num_regions,
            "loss_box_reg": loss_box_reg / num_regions * self.box_reg_loss_weight,
        }

    def _mask_loss(
        self, mask_head: MaskHead, features: Features, regions: Regions, outlines: Outlines
    ) -> Tensor:
        """Hold the masks of the foreground regions against the objects, cut out by the regions' boxes."""
        foreground = (regions.labels >= 0) & (regions.labels < self.num_classes)
        # A host sync: the mask head is costly, so it gets the foreground there is, not all there may be.
        images, slots = foreground.nonzero(as_tuple=True)
        boxes, objects = regions.boxes[images, slots], regions.objects[images, slots]
        logits = mask_head(self._pool(mask_head, features, boxes, images), regions.labels[images, slots])
        masks = rasterize_in_boxes(
            outlines.edges[images, objects],
            outlines.parts[images, objects],
            outlines.num_parts,
            boxes,
            2 * mask_head.resolution,
        )
        return mask_loss(logits, masks)

    def _predict_boxes(self, features: Features, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, S, K + 1) and deltas (B, S, K or 1, 4) of boxes (B, S, 4)."""
        num_images, num_boxes = boxes.shape[:2]
        images = torch.arange(num_images, device=boxes.device)[:, None].expand(-1, num_boxes).flatten()
        pooled = self._pool(self.box_head, features, boxes.flatten(0, 1), images)
        logits, deltas = (promote(x) for x in self.box_predictor(self.box_head(pooled)))
        return logits.view(num_images, num_boxes, -1), deltas.view(num_images, num_boxes, -1, 4)

    def _pool(self, head: BoxHead | MaskHead, features: Features, boxes: Tensor, images: Tensor) -> Tensor:
        """Pool the maps (R, C, M, M) that `head` reads, of boxes (R, 4) in images (R,)."""
        return multilevel_roi_align(
            [features[level] for level in self.strides],
            list(self.strides.values()),
            boxes,
            images,
            resolution=head.resolution,
            sampling_ratio=head.sampling_ratio,
            sample_by_sample=self.reference_order,
        )
