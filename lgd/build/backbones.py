"""Backbones with their feature pyramids from the configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from lgd.backbones.resnet import ResNet
from lgd.build.choice import choose
from lgd.config.schema import Config
from lgd.config.values import ConfigError
from lgd.layers.fpn import FPN, TopBlockP6P7


def build_backbone(cfg: Config) -> tuple[nn.Module, FPN]:
    """Build the configured backbone and the neck over it.

    Raises:
        ConfigError: a backbone or an option that there is not.
    """
    return choose(BACKBONES, cfg.model.backbone.name, "MODEL.BACKBONE.NAME")(cfg)


def build_retinanet_resnet_fpn(cfg: Config) -> tuple[ResNet, FPN]:
    """Build a ResNet with an FPN whose P6 and P7 come from the ResNet's last map."""
    options, fpn = cfg.model.resnets, cfg.model.fpn
    _refuse_unsupported(cfg)
    try:
        backbone = ResNet(
            depth=options.depth,
            out_features=options.out_features,
            norm=options.norm,
            stride_in_1x1=options.stride_in_1x1,
            num_groups=options.num_groups,
            width_per_group=options.width_per_group,
            stem_out_channels=options.stem_out_channels,
            res2_out_channels=options.res2_out_channels,
            freeze_at=max(cfg.model.backbone.freeze_at, 0),
        )
        missing = set(fpn.in_features) - set(backbone.channels)
        if missing:
            raise ConfigError(
                f"MODEL.FPN.IN_FEATURES {sorted(missing)} are not in MODEL.RESNETS.OUT_FEATURES"
            )
        last = fpn.in_features[-1]
        neck = FPN(
            in_channels={name: backbone.channels[name] for name in fpn.in_features},
            in_strides={name: backbone.strides[name] for name in fpn.in_features},
            out_channels=fpn.out_channels,
            norm=fpn.norm,
            top_block=TopBlockP6P7(backbone.channels[last], fpn.out_channels, last),
        )
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"MODEL.RESNETS or MODEL.FPN: {error}") from error
    return backbone, neck


BACKBONES: Mapping[str, Callable[[Config], tuple[nn.Module, FPN]]] = {
    "build_retinanet_resnet_fpn_backbone": build_retinanet_resnet_fpn,
}


def _refuse_unsupported(cfg: Config) -> None:
    """Name the options of the reference's schema that the ResNet or the FPN does not have."""
    unsupported = {
        "MODEL.RESNETS.DEFORM_ON_PER_STAGE": any(cfg.model.resnets.deform_on_per_stage),
        "MODEL.RESNETS.RES5_DILATION": cfg.model.resnets.res5_dilation != 1,
        "MODEL.FPN.FUSE_TYPE": cfg.model.fpn.fuse_type != "sum",
        "INPUT.CROP.ENABLED": cfg.input.crop.enabled,
        "DATALOADER.SAMPLER_TRAIN": cfg.dataloader.sampler_train != "TrainingSampler",
    }
    for key, used in unsupported.items():
        if used:
            raise ConfigError(f"{key} is set to something that is not available yet; leave it at its default")
