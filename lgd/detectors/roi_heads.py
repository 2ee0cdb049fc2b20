"""What is done with each proposed region: class, box, and mask.

Sources: Fast R-CNN (arXiv 1504.08083), Mask R-CNN (arXiv 1703.06870).
Legend: B images, L levels, N object slots and P proposal slots per image, S sampled regions per image,
R regions of the whole batch, K classes, C channels, M the side of a region's map.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lgd.detectors.detections import count_rows, keep_best_of_images, to_original_sizes
from lgd.detectors.mask_head import MaskHead, mask_loss
from lgd.detectors.rpn import Proposals
from lgd.layers.conv import ConvNorm
from lgd.ops.boxes import clip_boxes, decode_deltas, encode_foreground
from lgd.ops.losses import smooth_l1_loss
from lgd.ops.matching import BACKGROUND, FOREGROUND, match_anchors
from lgd.ops.polygons import rasterize_in_boxes
from lgd.ops.predictions import promote, take_rows
from lgd.ops.roi_align import multilevel_roi_align
from lgd.ops.sampling import sample_balanced
from lgd.structures import Batch, Detections, Features, Outlines, Targets


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
        return self.cls_score(x), self.bbox_pred(x).view(len(x), -1, 4)


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
    def detect(self, features: Features, proposals: Proposals, batch: Batch) -> list[Detections]:
        """Detect objects among the proposals; one `Detections` per image, in original pixels."""
        logits, deltas = self._predict_boxes(features, proposals.boxes)
        scores = logits.softmax(dim=-1)[..., :-1]
        sure = (scores > self.score_thresh_test) & proposals.valid[..., None]
        images, rows, labels = sure.nonzero(as_tuple=True)
        column = labels if deltas.shape[2] > 1 else torch.zeros_like(labels)
        boxes = decode_deltas(
            proposals.boxes[images, rows], deltas[images, rows, column], self.box_reg_weights
        )
        boxes, scores = clip_boxes(boxes, batch.sizes[images]), scores[images, rows, labels]
        kept, counts = keep_best_of_images(
            boxes,
            scores,
            labels,
            count_rows(images, len(batch.sizes)),
            nms_threshold=self.nms_thresh_test,
            limit=self.detections_per_image,
        )
        boxes, scores, labels, images = (x[kept] for x in (boxes, scores, labels, images))
        masks = None
        if self.mask_head is not None:
            pooled = self._pool(self.mask_head, features, boxes, images)
            masks = self.mask_head(pooled, labels).sigmoid()
        return to_original_sizes(Detections(boxes, scores, labels, masks), counts, batch)

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
        )
