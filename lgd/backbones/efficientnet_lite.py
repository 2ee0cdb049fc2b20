"""EfficientNet-Lite: EfficientNet (arXiv 1905.11946) without squeeze-and-excitation, and with ReLU6.

Padding is TensorFlow's SAME, in which these networks were trained: at stride 2 and an even side one cell less
before the map than behind it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lgd.backbones.backbone import Backbone
from lgd.layers.conv import ConvNorm
from lgd.layers.norm import freeze
from lgd.layers.relu6 import relu6_

_EPS = 1e-3
_STEM_CHANNELS = 32
_STAGES = ("stage1", "stage2", "stage3", "stage4", "stage5")
"""The map of stage n has stride 2^n."""


class _Group(NamedTuple):
    """Blocks of the same width, of which the first takes the stride; `is_scaled` by the variant's depth."""

    kernel_size: int
    num_blocks: int
    out_channels: int
    expansion: int
    stride: int
    is_scaled: bool = True


_GROUPS = (
    _Group(3, 1, 16, 1, 1, is_scaled=False),
    _Group(3, 2, 24, 6, 2),
    _Group(5, 2, 40, 6, 2),
    _Group(3, 3, 80, 6, 2),
    _Group(5, 3, 112, 6, 1),
    _Group(5, 4, 192, 6, 2),
    _Group(3, 1, 320, 6, 1, is_scaled=False),
)
_VARIANTS = {0: (1.0, 1.0), 1: (1.0, 1.1), 2: (1.1, 1.2)}
"""Factors on width and depth. The stem keeps its width."""


class SameConvNorm(ConvNorm):
    """`ConvNorm` without dilation that pads as TensorFlow's SAME."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, *, stride: int, groups: int, norm: str
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride=stride, groups=groups, norm=norm, norm_eps=_EPS
        )
        if stride > 1:
            self.padding = (0, 0)  # laid around the input before, according to its size

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, ceil(H / stride), ceil(W / stride))."""
        return super().forward(x if self.stride[0] == 1 else self._pad(x))

    def _pad(self, x: Tensor) -> Tensor:
        rows, columns = (self._padding_of(side) for side in x.shape[-2:])
        return F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))

    def _padding_of(self, side: int) -> int:
        stride = self.stride[0]
        # Exported programs take canvases of which every stride is a divisor. With sides that are not known,
        # torch would reason about the remainder of each for minutes.
        rest = 0 if torch.compiler.is_exporting() else side % stride
        return max(self.kernel_size[0] - (rest or stride), 0)


class InvertedResidual(nn.Module):
    """1x1 convolution to more channels, one of each channel by itself, 1x1 to fewer; beside a shortcut.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: of the convolution in the middle.
        expansion: its channels over `in_channels`; with 1 the first convolution is left out.
        stride: of the block. With 1, and as many channels behind as before, the input is added.
        norm: name of the norm after every convolution.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, kernel_size: int, expansion: int, stride: int, norm: str
    ) -> None:
        super().__init__()
        width = in_channels * expansion
        self.has_shortcut = stride == 1 and in_channels == out_channels
        self.expand = ConvNorm(in_channels, width, 1, norm=norm, norm_eps=_EPS) if expansion > 1 else None
        self.depthwise = SameConvNorm(width, width, kernel_size, stride=stride, groups=width, norm=norm)
        self.project = ConvNorm(width, out_channels, 1, norm=norm, norm_eps=_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H/stride, W/stride), sizes rounded up."""
        wide = x if self.expand is None else relu6_(self.expand(x))
        out: Tensor = self.project(relu6_(self.depthwise(wide)))
        return x + out if self.has_shortcut else out


class EfficientNetLite(Backbone):
    """A stem and seven groups of blocks in five stages; stage n has stride 2^n.

    Args:
        variant: 0, 1 or 2; stage 2 to 5 have 24, 40, 112 and 320 channels, in variant 2 24, 48, 120 and 352.
        out_features: maps to return, of "stage1" .. "stage5".
        norm: name of the norm after every convolution.
        freeze_at: how many stages don't train: 0 none, 1 stage 1 with the stem, 2 also stage 2, ...

    Attributes:
        channels: channels by returned map, fine to coarse.
        strides: pixels per cell by returned map.

    Raises:
        ValueError: a variant or a map that there is not.
    """

    def __init__(
        self,
        variant: int,
        *,
        out_features: Sequence[str] = ("stage3", "stage4", "stage5"),
        norm: str = "FrozenBN",
        freeze_at: int = 2,
    ) -> None:
        super().__init__()
        _check(variant, out_features)
        last = max(map(_STAGES.index, out_features))
        self.stem = SameConvNorm(3, _STEM_CHANNELS, 3, stride=2, groups=1, norm=norm)
        self.blocks = nn.ModuleList()
        self.ends: dict[str, int] = {}  # by stage, the index of the first block after it
        channels: dict[str, int] = {}
        stage, width = 0, _STEM_CHANNELS
        for group in _scaled_groups(variant):
            stage += group.stride - 1
            if stage > last:
                break
            for index in range(group.num_blocks):
                block = InvertedResidual(
                    width,
                    group.out_channels,
                    kernel_size=group.kernel_size,
                    expansion=group.expansion,
                    stride=group.stride if index == 0 else 1,
                    norm=norm,
                )
                self.blocks.append(block)
                width = group.out_channels
            self.ends[_STAGES[stage]], channels[_STAGES[stage]] = len(self.blocks), width
        ordered = [name for name in self.ends if name in out_features]
        self.channels = {name: channels[name] for name in ordered}
        self.strides = {name: 2 ** (_STAGES.index(name) + 1) for name in ordered}
        _init_weights(self)
        self._freeze(freeze_at)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) -> {name: (B, channels[name], H / strides[name], W / strides[name])}, rounded up."""
        x = relu6_(self.stem(x))
        maps, begin = {}, 0
        for name, end in self.ends.items():
            for block in self.blocks[begin:end]:
                x = block(x)
            maps[name], begin = x, end
        return {name: maps[name] for name in self.channels}

    def _freeze(self, freeze_at: int) -> None:
        if freeze_at > 0:
            freeze(self.stem)
        for name in _STAGES[:freeze_at]:
            freeze(self.blocks[: self.ends.get(name, 0)])


def _scaled_groups(variant: int) -> list[_Group]:
    width, depth = _VARIANTS[variant]
    return [
        group._replace(
            num_blocks=math.ceil(group.num_blocks * depth) if group.is_scaled else group.num_blocks,
            out_channels=_round_channels(group.out_channels * width),
        )
        for group in _GROUPS
    ]


def _round_channels(width: float) -> int:
    """The nearest multiple of 8 that is not less than nine tenths of `width`."""
    rounded = max(8, int(width + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * width else rounded


def _check(variant: int, out_features: Sequence[str]) -> None:
    if variant not in _VARIANTS:
        raise ValueError(f"no EfficientNet-Lite{variant}; choose one of {sorted(_VARIANTS)}")
    unknown = [name for name in out_features if name not in _STAGES]
    if unknown or not out_features:
        raise ValueError(f"an EfficientNet-Lite has no maps {unknown}; choose some of {list(_STAGES)}")


def _init_weights(module: nn.Module) -> None:
    """Normal with variance 2 / fan_out of the convolution's group (arXiv 1502.01852); bias 0."""
    for conv in module.modules():
        if isinstance(conv, nn.Conv2d):
            fan_out = conv.weight[0, 0].numel() * conv.out_channels // conv.groups
            nn.init.normal_(conv.weight, std=math.sqrt(2 / fan_out))
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)
