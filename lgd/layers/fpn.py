"""Feature pyramid network (arXiv 1612.03144)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from lgd.layers.conv import ConvNorm
from lgd.structures import Features


class TopBlockP6P7(nn.Module):
    """More levels by strided convolutions, as RetinaNet (arXiv 1708.02002, section 4).

    Args:
        in_channels: channels of the map it reads.
        out_channels: C.
        source: the map it reads, one of the backbone's ("res5") or of the pyramid's ("p5").
        num_levels: 2, or 1 for P6 alone.

    Raises:
        ValueError: another number of levels.
    """

    def __init__(self, in_channels: int, out_channels: int, source: str, num_levels: int = 2) -> None:
        super().__init__()
        if num_levels not in (1, 2):
            raise ValueError(f"convolutions add 1 or 2 levels on top, not {num_levels}")
        self.source = source
        self.num_levels = num_levels
        self.p6 = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1)
        self.p7 = nn.Conv2d(out_channels, out_channels, 3, stride=2, padding=1) if num_levels == 2 else None
        for conv in (self.p6, self.p7):
            if conv is not None:
                _init_xavier(conv)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, in_channels, H, W) -> [(B, C, H/2, W/2), (B, C, H/4, W/4)], sizes rounded up."""
        p6 = _convolve_padded(self.p6, x)
        return [p6] if self.p7 is None else [p6, _convolve_padded(self.p7, F.relu(p6))]


class TopBlockMaxPool(nn.Module):
    """One more level: every second cell of the pyramid's last (arXiv 1612.03144, section 4.1).

    Args:
        source: the map it reads.
    """

    num_levels = 1

    def __init__(self, source: str = "p5") -> None:
        super().__init__()
        self.source = source

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, H, W) -> [(B, C, H/2, W/2)], sizes rounded up."""
        return [F.max_pool2d(x, kernel_size=1, stride=2)]


class FPN(nn.Module):
    """Top-down pathway over a backbone's maps.

    Level n has stride 2^n and is called "pn"; its layers `fpn_lateral{n}` and `fpn_output{n}`.

    Args:
        in_channels: channels of the backbone's maps by name, fine to coarse.
        in_strides: their strides, each twice the one before.
        out_channels: C.
        norm: name of the norm after every convolution, "" for none.
        top_block: makes coarser levels; None for none.
        fuse_type: "sum" of a level and the one above it, or their "avg".

    Attributes:
        channels: C.
        strides: stride by level, fine to coarse.
    """

    def __init__(
        self,
        *,
        in_channels: Mapping[str, int],
        in_strides: Mapping[str, int],
        out_channels: int,
        norm: str = "",
        top_block: TopBlockP6P7 | TopBlockMaxPool | None = None,
        fuse_type: str = "sum",
    ) -> None:
        super().__init__()
        self.in_features = list(in_channels)
        if fuse_type not in ("sum", "avg"):
            raise ValueError(f"an FPN joins levels by 'sum' or 'avg', not {fuse_type!r}")
        self.fuse_type = fuse_type
        strides = [in_strides[name] for name in self.in_features]
        if any(coarse != 2 * fine for fine, coarse in pairwise(strides)):
            raise ValueError(f"FPN needs maps whose strides double, not {strides} of {self.in_features}")
        self.stages = [int(math.log2(stride)) for stride in strides]
        for stage, name in zip(self.stages, self.in_features, strict=True):
            lateral = ConvNorm(in_channels[name], out_channels, 1, norm=norm)
            output = ConvNorm(out_channels, out_channels, 3, norm=norm)
            for kind, conv in (("lateral", lateral), ("output", output)):
                _init_xavier(conv)
                self.add_module(f"fpn_{kind}{stage}", conv)
        self.top_block = top_block
        last = self.stages[-1] + (top_block.num_levels if top_block else 0)
        self.channels = out_channels
        self.strides = {f"p{stage}": 2**stage for stage in range(self.stages[0], last + 1)}

    def forward(self, maps: Mapping[str, Tensor]) -> Features:
        """Merge the backbone's maps into {level: (B, C, H_l, W_l)}, fine to coarse."""
        outputs: list[Tensor] = []
        merged: Tensor | None = None
        for stage, name in zip(reversed(self.stages), reversed(self.in_features), strict=True):
            lateral: Tensor = self.get_submodule(f"fpn_lateral{stage}")(maps[name])
            if merged is not None:
                above = F.interpolate(merged, size=lateral.shape[-2:], mode="nearest")
                lateral = lateral + above
                if self.fuse_type == "avg":
                    lateral = lateral / 2
            merged = lateral
            outputs.insert(0, self.get_submodule(f"fpn_output{stage}")(merged))
        levels = dict(zip(self.strides, outputs, strict=False))
        if self.top_block is not None:
            source = self.top_block.source
            top = self.top_block(maps[source] if source in maps else levels[source])
            levels.update(zip(list(self.strides)[len(outputs) :], top, strict=True))
        return levels


def _convolve_padded(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Apply `conv` to `x` with the padding laid around it first.

    Where a map is a single cell, torch 2.15's own padding on the CPU in bfloat16 leaves those parts of the
    weight's gradient that only padding belongs to uninitialised.
    """
    return F.conv2d(F.pad(x, (1, 1, 1, 1)), conv.weight, conv.bias, conv.stride)


def _init_xavier(conv: nn.Conv2d) -> None:
    """Uniform with variance 1 / fan_in; bias 0."""
    nn.init.kaiming_uniform_(conv.weight, a=1)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
