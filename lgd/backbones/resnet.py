"""ResNet (arXiv 1512.03385) and ResNeXt (arXiv 1611.05431)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from lgd.backbones.backbone import Backbone
from lgd.layers.conv import ConvNorm
from lgd.layers.deform_conv import OffsetConv, apply_deformed
from lgd.layers.norm import freeze


class _Depth(NamedTuple):
    bottleneck: bool
    num_blocks: tuple[int, int, int, int]


_DEPTHS = {
    18: _Depth(False, (2, 2, 2, 2)),
    34: _Depth(False, (3, 4, 6, 3)),
    50: _Depth(True, (3, 4, 6, 3)),
    101: _Depth(True, (3, 4, 23, 3)),
}
_STAGES = ("res2", "res3", "res4", "res5")


class Stem(nn.Module):
    """7x7 convolution and max pooling, each of stride 2."""

    def __init__(self, out_channels: int, norm: str) -> None:
        super().__init__()
        self.conv1 = ConvNorm(3, out_channels, 7, stride=2, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, H/4, W/4), sizes rounded up."""
        return F.max_pool2d(F.relu_(self.conv1(x)), kernel_size=3, stride=2, padding=1)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, norm: str) -> None:
        super().__init__()
        self.shortcut = _make_shortcut(in_channels, out_channels, stride, norm)
        self.conv1 = ConvNorm(in_channels, out_channels, 3, stride=stride, norm=norm)
        self.conv2 = ConvNorm(out_channels, out_channels, 3, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H/stride, W/stride), sizes rounded up."""
        out = self.conv2(F.relu_(self.conv1(x)))
        return F.relu_(out + (x if self.shortcut is None else self.shortcut(x)))


class BottleneckBlock(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        bottleneck_channels: channels of the 3x3 convolution.
        stride: of the block.
        dilation: of the 3x3 convolution.
        num_groups: groups of the 3x3 convolution.
        stride_in_1x1: whether the first 1x1 convolution takes the stride (as in the original ResNet
            weights), or the 3x3 (as in ResNeXt and torchvision).
        norm: a name for `lgd.layers.norm.make_norm`.
        make_offset_conv: makes the offsets of a deformable 3x3 convolution; None for a plain one.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        bottleneck_channels: int,
        stride: int,
        dilation: int,
        num_groups: int,
        stride_in_1x1: bool,
        norm: str,
        make_offset_conv: Callable[[ConvNorm], OffsetConv] | None,
    ) -> None:
        super().__init__()
        stride_1x1, stride_3x3 = (stride, 1) if stride_in_1x1 else (1, stride)
        self.shortcut = _make_shortcut(in_channels, out_channels, stride, norm)
        self.conv1 = ConvNorm(in_channels, bottleneck_channels, 1, stride=stride_1x1, norm=norm)
        self.conv2 = ConvNorm(
            bottleneck_channels,
            bottleneck_channels,
            3,
            stride=stride_3x3,
            dilation=dilation,
            groups=num_groups,
            norm=norm,
        )
        self.conv2_offset = make_offset_conv(self.conv2) if make_offset_conv else None
        self.conv3 = ConvNorm(bottleneck_channels, out_channels, 1, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H/stride, W/stride), sizes rounded up."""
        out = F.relu_(self.conv1(x))
        if self.conv2_offset is None:
            out = self.conv2(out)
        else:
            out = apply_deformed(self.conv2, self.conv2_offset, out)
        out = self.conv3(F.relu_(out))
        return F.relu_(out + (x if self.shortcut is None else self.shortcut(x)))


class ResNet(Backbone):
    """A stem and up to four stages, each of twice the channels (and mostly the stride) of the one before.

    Args:
        depth: 18 or 34 (basic blocks), 50 or 101 (bottlenecks).
        out_features: maps to return, of "stem", "res2" .. "res5".
        norm: name of the norm after every convolution.
        stride_in_1x1: see `BottleneckBlock`.
        num_groups: groups of the bottlenecks' 3x3 convolutions (32 for ResNeXt).
        width_per_group: channels of each group in res2.
        stem_out_channels: channels of the stem.
        res2_out_channels: channels of res2's output (256 for bottlenecks, 64 for basic blocks in the paper).
        res5_dilation: of the 3x3 convolutions of res5; with 2 it keeps the stride of res4.
        deform_on_per_stage: whether res2, .., res5 have deformable 3x3 convolutions.
        deform_modulated: deformable convolution v2, with a mask.
        deform_num_groups: groups of channels with offsets of their own.
        freeze_at: how many stages don't train: 0 none, 1 the stem, 2 also res2, ...

    Attributes:
        channels: channels by returned map, fine to coarse.
        strides: pixels per cell by returned map.

    Raises:
        ValueError: a depth or a map that there is not, or an option that basic blocks don't have.
    """

    def __init__(
        self,
        *,
        depth: int,
        out_features: Sequence[str] = ("res3", "res4", "res5"),
        norm: str = "FrozenBN",
        stride_in_1x1: bool = True,
        num_groups: int = 1,
        width_per_group: int = 64,
        stem_out_channels: int = 64,
        res2_out_channels: int = 256,
        res5_dilation: int = 1,
        deform_on_per_stage: Sequence[bool] = (False, False, False, False),
        deform_modulated: bool = False,
        deform_num_groups: int = 1,
        freeze_at: int = 2,
    ) -> None:
        super().__init__()
        _check_names(depth, out_features)
        if not _DEPTHS[depth].bottleneck:
            _check_basic(depth, num_groups, res5_dilation, deform_on_per_stage)
        bottleneck, num_blocks = _DEPTHS[depth]
        self.stem = Stem(stem_out_channels, norm)
        self.stage_names: list[str] = []
        channels, strides = {"stem": stem_out_channels}, {"stem": 4}
        in_channels, num_stages = stem_out_channels, max(map(_stage_number, out_features)) - 1
        make_offset_conv = partial(OffsetConv, num_groups=deform_num_groups, modulated=deform_modulated)
        stride_so_far = 4
        for index, name in enumerate(_STAGES[:num_stages]):
            dilation = res5_dilation if name == "res5" else 1
            stride = 1 if index == 0 or dilation == 2 else 2
            make_block: Callable[..., nn.Module] = partial(BasicBlock, norm=norm)
            if bottleneck:
                make_block = partial(
                    BottleneckBlock,
                    bottleneck_channels=num_groups * width_per_group * 2**index,
                    dilation=dilation,
                    num_groups=num_groups,
                    stride_in_1x1=stride_in_1x1,
                    norm=norm,
                    make_offset_conv=make_offset_conv if deform_on_per_stage[index] else None,
                )
            out_channels = res2_out_channels * 2**index
            first = make_block(in_channels, out_channels, stride=stride)
            others = [make_block(out_channels, out_channels, stride=1) for _ in range(num_blocks[index] - 1)]
            self.add_module(name, nn.Sequential(first, *others))
            self.stage_names.append(name)
            stride_so_far *= stride
            in_channels, channels[name], strides[name] = out_channels, out_channels, stride_so_far
        ordered = [name for name in channels if name in out_features]
        self.channels = {name: channels[name] for name in ordered}
        self.strides = {name: strides[name] for name in ordered}
        _init_weights(self)
        for name in ["stem", *self.stage_names][:freeze_at]:
            freeze(self.get_submodule(name))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) -> {name: (B, channels[name], H / strides[name], W / strides[name])}."""
        maps = {"stem": self.stem(x)}
        x = maps["stem"]
        for name in self.stage_names:
            x = maps[name] = self.get_submodule(name)(x)
        return {name: maps[name] for name in self.channels}


def _make_shortcut(in_channels: int, out_channels: int, stride: int, norm: str) -> ConvNorm | None:
    if in_channels == out_channels and stride == 1:
        return None
    return ConvNorm(in_channels, out_channels, 1, stride=stride, norm=norm)


def _stage_number(name: str) -> int:
    return 1 if name == "stem" else int(name.removeprefix("res"))


def _check_names(depth: int, out_features: Sequence[str]) -> None:
    if depth not in _DEPTHS:
        raise ValueError(f"no ResNet of depth {depth}; choose one of {sorted(_DEPTHS)}")
    unknown = [name for name in out_features if name not in ("stem", *_STAGES)]
    if unknown or not out_features:
        raise ValueError(f"a ResNet has no maps {unknown}; choose some of {['stem', *_STAGES]}")


def _check_basic(
    depth: int, num_groups: int, res5_dilation: int, deform_on_per_stage: Sequence[bool]
) -> None:
    missing = {
        f"{num_groups} groups": num_groups != 1,
        f"dilation {res5_dilation}": res5_dilation != 1,
        "deformable convolutions": any(deform_on_per_stage),
    }
    for option, is_used in missing.items():
        if is_used:
            raise ValueError(f"a ResNet of depth {depth} has basic blocks, which have no {option}")


def _init_weights(module: nn.Module) -> None:
    """Normal with variance 2 / fan_out (arXiv 1502.01852); bias 0. Offsets stay 0."""
    for conv in module.modules():
        if isinstance(conv, nn.Conv2d) and not isinstance(conv, OffsetConv):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)
