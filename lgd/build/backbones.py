"""Backbones with their feature pyramids from the configuration."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from torch import nn

from lgd.backbones.resnet import ResNet
from lgd.backbones.swin import SwinTransformer
from lgd.build.choice import choose
from lgd.config.schema import Config
from lgd.config.values import ConfigError
from lgd.layers.fpn import FPN, TopBlockMaxPool, TopBlockP6P7


def build_backbone(cfg: Config) -> tuple[nn.Module, FPN]:
    """Build the configured backbone and the neck over it.

    Raises:
        ConfigError: a backbone or an option that there is not.
    """
    return choose(BACKBONES, cfg.model.backbone.name, "MODEL.BACKBONE.NAME")(cfg)


def build_retinanet_resnet_fpn(cfg: Config) -> tuple[ResNet, FPN]:
    """Build a ResNet with an FPN whose P6 and P7 come from the ResNet's last map."""
    backbone = _build_resnet(cfg)
    last = _find_last(cfg, backbone)
    top_block = TopBlockP6P7(backbone.channels[last], cfg.model.fpn.out_channels, last)
    return backbone, _build_fpn(cfg, backbone, top_block)


def build_resnet_fpn(cfg: Config) -> tuple[ResNet, FPN]:
    """Build a ResNet with an FPN whose last level is pooled from the one before."""
    backbone = _build_resnet(cfg)
    return backbone, _build_fpn(cfg, backbone, TopBlockMaxPool(_last_level(cfg, backbone)))


def build_retinanet_swint_fpn(cfg: Config) -> tuple[SwinTransformer, FPN]:
    """Build a Swin transformer with an FPN whose top levels come from the pyramid's own last one."""
    backbone, fpn = _build_swin(cfg), cfg.model.fpn
    level = _last_level(cfg, backbone)
    with _blaming("MODEL.FPN.TOP_LEVELS"):
        top_block = None
        if fpn.top_levels:
            top_block = TopBlockP6P7(fpn.out_channels, fpn.out_channels, level, fpn.top_levels)
    return backbone, _build_fpn(cfg, backbone, top_block)


def build_swint_fpn(cfg: Config) -> tuple[SwinTransformer, FPN]:
    """Build a Swin transformer with an FPN whose last level is pooled from the one before."""
    backbone = _build_swin(cfg)
    return backbone, _build_fpn(cfg, backbone, TopBlockMaxPool(_last_level(cfg, backbone)))


BACKBONES: Mapping[str, Callable[[Config], tuple[nn.Module, FPN]]] = {
    "build_retinanet_resnet_fpn_backbone": build_retinanet_resnet_fpn,
    "build_resnet_fpn_backbone": build_resnet_fpn,
    "build_retinanet_swint_fpn_backbone": build_retinanet_swint_fpn,
    "build_swint_fpn_backbone": build_swint_fpn,
}


def _build_resnet(cfg: Config) -> ResNet:
    options = cfg.model.resnets
    separate = cfg.model.backbone.reference_order and options.norm == "FrozenBN"
    with _blaming("MODEL.RESNETS"):
        return ResNet(
            depth=options.depth,
            out_features=options.out_features,
            norm="SeparateFrozenBN" if separate else options.norm,
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
    with _blaming("MODEL.SWINT"):
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


def _build_fpn(
    cfg: Config, backbone: ResNet | SwinTransformer, top_block: TopBlockP6P7 | TopBlockMaxPool | None
) -> FPN:
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


def _find_last(cfg: Config, backbone: ResNet | SwinTransformer) -> str:
    """The coarsest map that the FPN reads."""
    missing = set(cfg.model.fpn.in_features) - set(backbone.channels)
    if missing or not cfg.model.fpn.in_features:
        raise ConfigError(
            f"MODEL.FPN.IN_FEATURES {cfg.model.fpn.in_features} must be maps of the backbone's OUT_FEATURES, "
            f"{tuple(backbone.channels)}"
        )
    return cfg.model.fpn.in_features[-1]


def _last_level(cfg: Config, backbone: ResNet | SwinTransformer) -> str:
    """The coarsest level that the FPN makes of the backbone's maps."""
    return f"p{int(math.log2(backbone.strides[_find_last(cfg, backbone)]))}"


@contextmanager
def _blaming(section: str) -> Iterator[None]:
    """Put the section of the config that a part was built from before what it objects to."""
    try:
        yield
    except ValueError as error:
        raise ConfigError(f"{section}: {error}") from error
