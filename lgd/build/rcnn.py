"""Faster R-CNN and Mask R-CNN from the configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lgd.build.backbones import build_backbone
from lgd.config.schema import Config
from lgd.config.values import ConfigError
from lgd.detectors.mask_head import MaskHead
from lgd.detectors.rcnn import RCNN
from lgd.detectors.roi_heads import BoxHead, BoxPredictor, RoIHeads
from lgd.detectors.rpn import RPN


def build_rcnn(cfg: Config) -> RCNN:
    """Build Faster R-CNN or, with MODEL.MASK_ON, Mask R-CNN on the configured backbone."""
    backbone, neck = build_backbone(cfg)
    read = {*cfg.model.rpn.in_features, *cfg.model.roi_heads.in_features}
    if read < set(neck.strides):
        raise ConfigError(
            f"no head reads {sorted(set(neck.strides) - read)} of the neck; "
            "add them to MODEL.RPN.IN_FEATURES or MODEL.ROI_HEADS.IN_FEATURES"
        )
    try:
        return RCNN(
            backbone=backbone,
            neck=neck,
            proposal_generator=_build_rpn(cfg, neck.strides, neck.channels),
            roi_heads=_build_roi_heads(cfg, neck.strides, neck.channels),
            pixel_mean=cfg.model.pixel_mean,
            pixel_std=cfg.model.pixel_std,
        )
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"MODEL.RPN, MODEL.ROI_HEADS or MODEL.ANCHOR_GENERATOR: {error}") from error


def _build_rpn(cfg: Config, strides: Mapping[str, int], channels: int) -> RPN:
    options, anchors = cfg.model.rpn, cfg.model.anchor_generator
    return RPN(
        channels=channels,
        strides=_choose_levels(strides, options.in_features, "MODEL.RPN"),
        anchor_sizes=anchors.sizes,
        aspect_ratios=anchors.aspect_ratios,
        anchor_offset=anchors.offset,
        iou_thresholds=_low_and_high(options.iou_thresholds, options.iou_labels, "MODEL.RPN"),
        boundary_thresh=options.boundary_thresh,
        batch_size_per_image=options.batch_size_per_image,
        positive_fraction=options.positive_fraction,
        box_reg_weights=options.bbox_reg_weights,
        smooth_l1_beta=options.smooth_l1_beta,
        box_reg_loss_weight=options.bbox_reg_loss_weight,
        loss_weight=options.loss_weight,
        pre_nms_topk_train=options.pre_nms_topk_train,
        pre_nms_topk_test=options.pre_nms_topk_test,
        post_nms_topk_train=options.post_nms_topk_train,
        post_nms_topk_test=options.post_nms_topk_test,
        nms_thresh=options.nms_thresh,
        min_size=cfg.model.proposal_generator.min_size,
        reference_order=options.reference_order,
    )


def _build_roi_heads(cfg: Config, strides: Mapping[str, int], channels: int) -> RoIHeads:
    options, box = cfg.model.roi_heads, cfg.model.roi_box_head
    box_head = BoxHead(
        channels=channels,
        num_convs=box.num_conv,
        conv_channels=box.conv_dim,
        norm=box.norm,
        num_fcs=box.num_fc,
        fc_channels=box.fc_dim,
        resolution=box.pooler_resolution,
        sampling_ratio=box.pooler_sampling_ratio,
    )
    return RoIHeads(
        num_classes=cfg.num_classes,
        strides=_choose_levels(strides, options.in_features, "MODEL.ROI_HEADS"),
        box_head=box_head,
        box_predictor=BoxPredictor(
            in_channels=box_head.out_channels,
            num_classes=cfg.num_classes,
            class_agnostic=box.cls_agnostic_bbox_reg,
        ),
        mask_head=_build_mask_head(cfg, channels) if cfg.model.mask_on else None,
        iou_thresholds=_low_and_high(options.iou_thresholds, options.iou_labels, "MODEL.ROI_HEADS"),
        batch_size_per_image=options.batch_size_per_image,
        positive_fraction=options.positive_fraction,
        append_objects=options.proposal_append_gt,
        box_reg_weights=box.bbox_reg_weights,
        smooth_l1_beta=box.smooth_l1_beta,
        box_reg_loss_weight=box.bbox_reg_loss_weight,
        score_thresh_test=options.score_thresh_test,
        nms_thresh_test=options.nms_thresh_test,
        detections_per_image=cfg.test.detections_per_image,
        reference_order=cfg.model.rpn.reference_order,
    )


def _build_mask_head(cfg: Config, channels: int) -> MaskHead:
    options = cfg.model.roi_mask_head
    return MaskHead(
        channels=channels,
        num_classes=1 if options.cls_agnostic_mask else cfg.num_classes,
        num_convs=options.num_conv,
        conv_channels=options.conv_dim,
        norm=options.norm,
        resolution=options.pooler_resolution,
        sampling_ratio=options.pooler_sampling_ratio,
    )


def _choose_levels(strides: Mapping[str, int], names: Sequence[str], section: str) -> dict[str, int]:
    """Strides of the levels `names`, in the neck's order."""
    unknown = [name for name in names if name not in strides]
    if unknown or not names:
        raise ConfigError(f"{section}.IN_FEATURES {tuple(names)} must be some of the neck's {tuple(strides)}")
    return {level: stride for level, stride in strides.items() if level in names}


def _low_and_high(thresholds: Sequence[float], labels: Sequence[int], section: str) -> tuple[float, float]:
    """Below the first is background, from the second on foreground, between them ignored."""
    if tuple(labels) == (0, 1):
        return thresholds[0], thresholds[0]
    if tuple(labels) == (0, -1, 1):
        return thresholds[0], thresholds[1]
    raise ConfigError(f"{section}.IOU_LABELS must be (0, 1) or (0, -1, 1), not {tuple(labels)}")
