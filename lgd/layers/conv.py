"""Convolution with its norm."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from lgd.layers.norm import FrozenBatchNorm2d, make_norm


class ConvNorm(nn.Conv2d):
    """A convolution that pads to keep the size (at stride 1), and the norm that follows it.

    A frozen batch norm is multiplied into the convolution's weight: the weight is small and the
    activation large, and autograd then keeps no copy of the activation for it.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: odd.
        stride: of the convolution.
        groups: of the convolution.
        norm: a name for `make_norm`. The convolution has a bias only without a norm.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        groups: int = 1,
        norm: str = "",
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=kernel_size // 2,
            groups=groups,
            bias=not norm,
        )
        self.norm = make_norm(norm, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, ceil(H / stride), ceil(W / stride))."""
        if isinstance(self.norm, FrozenBatchNorm2d):
            scale, shift = self.norm.scale_and_shift()
            weight = self.weight * scale[:, None, None, None]
            return F.conv2d(x, weight, shift, self.stride, self.padding, self.dilation, self.groups)
        x = super().forward(x)
        return x if self.norm is None else self.norm(x)
