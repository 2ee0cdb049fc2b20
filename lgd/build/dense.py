"""FCOS, ATSS, POTO and GFL from the configuration."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

from lgd.build.backbones import build_backbone
from lgd.config.model_schema import FcosConfig
from lgd.config.schema import Config
from lgd.config.values import ConfigError
from lgd.detectors.atss import ATSSAssigner
from lgd.detectors.fcos import FCOSAssigner
from lgd.detectors.gfl import GFL
from lgd.detectors.points import Assigner, PointDetector
from lgd.detectors.poto import POTOAssigner


def build_fcos(cfg: Config) -> PointDetector:
    """Build FCOS on the configured backbone."""
    options = cfg.model.fcos
    _refuse_unused(cfg, "reg_weight")
    if len(options.object_sizes_of_interest) != len(options.fpn_strides):
        raise ConfigError(
            f"MODEL.FCOS.OBJECT_SIZES_OF_INTEREST has {len(options.object_sizes_of_interest)} ranges for "
            f"{len(options.fpn_strides)} levels; give one for each"
        )
    try:
        assigner = FCOSAssigner(options.center_sampling_radius, options.object_sizes_of_interest)
    except ValueError as error:
        raise ConfigError(f"MODEL.FCOS.OBJECT_SIZES_OF_INTEREST: {error}") from error
    return _build(cfg, assigner, _with_centerness(cfg))


def build_atss(cfg: Config) -> PointDetector:
    """Build ATSS on the configured backbone."""
    _refuse_unused(cfg, "center_sampling_radius", "object_sizes_of_interest")
    return _build(
        cfg,
        ATSSAssigner(cfg.model.atss.anchor_scale, cfg.model.atss.topk),
        _with_centerness(cfg),
        box_loss_weight=cfg.model.fcos.reg_weight,
    )


def build_poto(cfg: Config) -> PointDetector:
    """Build POTO on the configured backbone."""
    options = cfg.model.poto
    _refuse_unused(
        cfg, "centerness_on_reg", "center_sampling_radius", "object_sizes_of_interest", "reg_weight"
    )
    return _build(
        cfg,
        POTOAssigner(options.alpha, options.center_sampling_radius),
        partial(PointDetector, centerness=None),
        box_loss_weight=options.reg_weight,
    )


def build_gfl(cfg: Config) -> PointDetector:
    """Build GFL on the configured backbone."""
    options = cfg.model.gfl
    _refuse_unused(
        cfg, "centerness_on_reg", "center_sampling_radius", "object_sizes_of_interest", "reg_weight",
        "norm_reg_targets", "bbox_reg_weights", "focal_loss_gamma", "focal_loss_alpha",
    )  # fmt: skip
    make = partial(GFL, num_bins=options.reg_max + 1, beta=options.beta, side_loss_weight=options.side_weight)
    assigner = ATSSAssigner(cfg.model.atss.anchor_scale, cfg.model.atss.topk)
    return _build(cfg, assigner, make, box_loss_weight=options.box_weight)


def _build(
    cfg: Config,
    assigner: Assigner,
    make: Callable[..., PointDetector],
    *,
    box_loss_weight: float = 1.0,
) -> PointDetector:
    options = cfg.model.fcos
    if cfg.model.shift_generator.num_shifts != 1:
        raise ConfigError(
            f"MODEL.SHIFT_GENERATOR.NUM_SHIFTS must be 1, not {cfg.model.shift_generator.num_shifts}"
        )
    backbone, neck = build_backbone(cfg)
    for key, given, found in (
        ("IN_FEATURES", options.in_features, tuple(neck.strides)),
        ("FPN_STRIDES", options.fpn_strides, tuple(neck.strides.values())),
    ):
        if given != found:
            raise ConfigError(f"MODEL.FCOS.{key} {given} are not those of the neck, {found}")
    try:
        return make(
            backbone=backbone,
            neck=neck,
            assigner=assigner,
            num_classes=cfg.num_classes,
            pixel_mean=cfg.model.pixel_mean,
            pixel_std=cfg.model.pixel_std,
            num_convs=options.num_convs,
            prior_prob=options.prior_prob,
            distances_in_strides=options.norm_reg_targets,
            location_offset=cfg.model.shift_generator.offset,
            box_reg_weights=options.bbox_reg_weights,
            focal_loss_alpha=options.focal_loss_alpha,
            focal_loss_gamma=options.focal_loss_gamma,
            box_loss_weight=box_loss_weight,
            sync_normalizers=options.norm_sync,
            score_thresh_test=options.score_thresh_test,
            topk_candidates_test=options.topk_candidates_test,
            nms_thresh_test=None if cfg.model.nms_type is None else options.nms_thresh_test,
            detections_per_image=cfg.test.detections_per_image,
            reference_order=options.reference_order,
        )
    except ValueError as error:
        raise ConfigError(f"MODEL.FCOS: {error}") from error


def _with_centerness(cfg: Config) -> Callable[..., PointDetector]:
    tower: Literal["box", "class"] = "box" if cfg.model.fcos.centerness_on_reg else "class"
    return partial(PointDetector, centerness=tower)


def _refuse_unused(cfg: Config, *names: str) -> None:
    """Name the keys of MODEL.FCOS that are set but that the chosen detector does not look at."""
    for name in names:
        if getattr(cfg.model.fcos, name) != getattr(FcosConfig(), name):
            raise ConfigError(
                f"MODEL.FCOS.{name.upper()} does nothing in {cfg.model.meta_architecture}; "
                "leave it at its default"
            )
