"""Backbones with their feature pyramids from the configuration; a backbone is a record here."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from lgd.backbones.backbone import Backbone
from lgd.backbones.efficientnet_lite import EfficientNetLite
from lgd.backbones.resnet import ResNet
from lgd.backbones.swin import SwinTransformer
from lgd.backbones.timm_features import TimmFeatures
from lgd.config.schema import Config
from lgd.config.values import ConfigError
from lgd.layers.fpn import FPN, TopBlockMaxPool, TopBlockP6P7

_REFERENCE_NAME = re.compile(r"build_(retinanet_)?(\w+)_fpn_backbone$")
_TIMM = "timm://"


@dataclass(frozen=True)
class Record:
    """A backbone that recipes may name.

    Attributes:
        name: in MODEL.BACKBONE.NAME, by itself or as in `build_retinanet_NAME_fpn_backbone`.
        build: makes it.
        section: of its settings, for messages.
        p6_from_map: whether RetinaNet's P6 comes from its last map, or from the pyramid's own last level.
    """

    name: str
    build: Callable[[Config], Backbone]
    section: str = "MODEL.BACKBONE or MODEL.FPN.IN_FEATURES"
    p6_from_map: bool = False


def build_backbone(cfg: Config) -> tuple[nn.Module, FPN]:
    """Build the configured backbone and the neck over it.

    Raises:
        ConfigError: a backbone or an option that there is not.
    """
    record, has_p6p7 = _find(cfg)
    with _blaming(record.section):
        backbone = record.build(cfg)
    last = _find_last(cfg, backbone)
    level = f"p{int(math.log2(backbone.strides[last]))}"
    top_block: TopBlockP6P7 | TopBlockMaxPool | None = TopBlockMaxPool(level)
    if has_p6p7:
        top_block = _build_p6p7(cfg, backbone, record, last, level)
    return backbone, _build_fpn(cfg, backbone, top_block)


def _find(cfg: Config) -> tuple[Record, bool]:
    """The record of the configured backbone, and whether the levels are those of RetinaNet, p3 to p7."""
    name = cfg.model.backbone.name
    match = _REFERENCE_NAME.match(name)
    word = match[2] if match else name
    record = BACKBONES.get(_TIMM if word.startswith(_TIMM) else word)
    if record is None:
        near = difflib.get_close_matches(word[:100], BACKBONES, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"MODEL.BACKBONE.NAME {name!r}: there is {', '.join(BACKBONES)}{hint}")
    return record, bool(match[1]) if match else cfg.model.meta_architecture != "GeneralizedRCNN"


def _build_p6p7(
    cfg: Config, backbone: Backbone, record: Record, last: str, level: str
) -> TopBlockP6P7 | None:
    """Two more levels, by convolutions on the last map or on the pyramid's last level."""
    fpn = cfg.model.fpn
    if record.p6_from_map:
        return TopBlockP6P7(backbone.channels[last], fpn.out_channels, last)
    if not fpn.top_levels:
        return None
    with _blaming("MODEL.FPN.TOP_LEVELS"):
        return TopBlockP6P7(fpn.out_channels, fpn.out_channels, level, fpn.top_levels)


def _build_resnet(cfg: Config) -> ResNet:
    options = cfg.model.resnets
    return ResNet(
        depth=options.depth,
        out_features=options.out_features,
        norm=_norm(cfg, options.norm),
        stride_in_1x1=options.stride_in_1x1,
        num_groups=options.num_groups,
        width_per_group=options.width_per_group,
        stem_out_channels=options.stem_out_channels,
        res2_out_channels=options.res2_out_channels,
        res5_dilation=options.res5_dilation,
        deform_on_per_stage=options.deform_on_per_stage,
        deform_modulated=options.deform_modulated,
        deform_num_groups=options.deform_num_groups,
        freeze_at=max(cfg.model.backbone.freeze_at, 0),
    )


def _build_swin(cfg: Config) -> SwinTransformer:
    options = cfg.model.swint
    return SwinTransformer(
        embed_dim=options.embed_dim,
        depths=options.depths,
        num_heads=options.num_heads,
        window_size=options.window_size,
        mlp_ratio=options.mlp_ratio,
        drop_path_rate=options.drop_path_rate,
        absolute_positions=options.ape,
        out_features=options.out_features,
        freeze_at=cfg.model.backbone.freeze_at,
        reference_order=cfg.model.backbone.reference_order,
    )


def _norm(cfg: Config, norm: str) -> str:
    return "SeparateFrozenBN" if cfg.model.backbone.reference_order and norm == "FrozenBN" else norm


def _plain(name: str, make: Callable[..., Backbone], **options: Any) -> Record:
    """The record of a backbone that has no section of its own: `make` takes maps, norm and freezing only."""

    def build(cfg: Config) -> Backbone:
        return make(
            out_features=cfg.model.fpn.in_features,
            norm=_norm(cfg, cfg.model.backbone.norm),
            freeze_at=max(cfg.model.backbone.freeze_at, 0),
        )

    return Record(name, build, **options)


def _build_timm(cfg: Config) -> TimmFeatures:
    return TimmFeatures(
        cfg.model.backbone.name.removeprefix(_TIMM),
        out_features=cfg.model.fpn.in_features,
        norm=cfg.model.backbone.norm,
        freeze_at=max(cfg.model.backbone.freeze_at, 0),
    )


_RECORDS = (
    Record("resnet", _build_resnet, section="MODEL.RESNETS", p6_from_map=True),
    Record("swint", _build_swin, section="MODEL.SWINT"),
    _plain("resnet18", partial(ResNet, depth=18, res2_out_channels=64), p6_from_map=True),
    _plain("resnet34", partial(ResNet, depth=34, res2_out_channels=64), p6_from_map=True),
    _plain("efficientnet_lite0", partial(EfficientNetLite, 0)),
    _plain("efficientnet_lite1", partial(EfficientNetLite, 1)),
    _plain("efficientnet_lite2", partial(EfficientNetLite, 2)),
    Record(_TIMM, _build_timm),
)

BACKBONES: Mapping[str, Record] = {record.name: record for record in _RECORDS}
"""By name."""


def _build_fpn(cfg: Config, backbone: Backbone, top_block: TopBlockP6P7 | TopBlockMaxPool | None) -> FPN:
    options = cfg.model.fpn
    with _blaming("MODEL.FPN"):
        return FPN(
            in_channels={name: backbone.channels[name] for name in options.in_features},
            in_strides={name: backbone.strides[name] for name in options.in_features},
            out_channels=options.out_channels,
            norm=options.norm,
            top_block=top_block,
            fuse_type=options.fuse_type,
        )


def _find_last(cfg: Config, backbone: Backbone) -> str:
    """The coarsest map that the FPN reads."""
    missing = set(cfg.model.fpn.in_features) - set(backbone.channels)
    if missing or not cfg.model.fpn.in_features:
        raise ConfigError(
            f"MODEL.FPN.IN_FEATURES {cfg.model.fpn.in_features} must be maps of the backbone's OUT_FEATURES, "
            f"{tuple(backbone.channels)}"
        )
    return cfg.model.fpn.in_features[-1]


@contextmanager
def _blaming(section: str) -> Iterator[None]:
    """Put the section of the config that a part was built from before what it objects to."""
    try:
        yield
    except ValueError as error:
        raise ConfigError(f"{section}: {error}") from error
