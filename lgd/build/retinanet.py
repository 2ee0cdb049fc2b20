"""RetinaNet from the configuration."""

from __future__ import annotations

from lgd.build.backbones import build_backbone
from lgd.config.schema import Config
from lgd.config.values import ConfigError
from lgd.detectors.retinanet import RetinaNet


def build_retinanet(cfg: Config) -> RetinaNet:
    """Build RetinaNet on the configured backbone."""
    options = cfg.model.retinanet
    if options.iou_labels != (0, -1, 1):
        raise ConfigError(f"MODEL.RETINANET.IOU_LABELS must be (0, -1, 1), not {options.iou_labels}")
    backbone, neck = build_backbone(cfg)
    if tuple(options.in_features) != tuple(neck.strides):
        raise ConfigError(
            f"MODEL.RETINANET.IN_FEATURES {options.in_features} are not the levels of the neck, "
            f"{tuple(neck.strides)}"
        )
    try:
        return RetinaNet(
            backbone=backbone,
            neck=neck,
            num_classes=cfg.num_classes,
            anchor_sizes=cfg.model.anchor_generator.sizes,
            aspect_ratios=cfg.model.anchor_generator.aspect_ratios,
            pixel_mean=cfg.model.pixel_mean,
            pixel_std=cfg.model.pixel_std,
            anchor_offset=cfg.model.anchor_generator.offset,
            num_convs=options.num_convs,
            prior_prob=options.prior_prob,
            iou_thresholds=(options.iou_thresholds[0], options.iou_thresholds[1]),
            focal_loss_alpha=options.focal_loss_alpha,
            focal_loss_gamma=options.focal_loss_gamma,
            smooth_l1_beta=options.smooth_l1_loss_beta,
            box_reg_weights=options.bbox_reg_weights,
            score_thresh_test=options.score_thresh_test,
            topk_candidates_test=options.topk_candidates_test,
            nms_thresh_test=options.nms_thresh_test,
            detections_per_image=cfg.test.detections_per_image,
            reference_normalizer=options.reference_normalizer,
        )
    except ValueError as error:
        raise ConfigError(f"MODEL.RETINANET or MODEL.ANCHOR_GENERATOR: {error}") from error
