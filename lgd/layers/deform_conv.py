"""Deformable convolution (v1: arXiv 1703.06211, v2 with a mask: arXiv 1811.11168).

Legend: B images; T = kernel_size^2 taps of the kernel, row by row; G groups of input channels, each with its
own offsets; h x w the size of the output.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from lgd.layers.conv import ConvNorm
from lgd.ops.finite import replace_non_finite


class OffsetConv(nn.Conv2d):
    """The convolution that predicts where a deformable one reads; at first it predicts zeros.

    Args:
        conv: the deformable convolution; this one reads the same map at the same places.
        num_groups: G.
        modulated: whether it also predicts a mask (v2).

    Raises:
        ValueError: channels that the groups don't divide.
    """

    def __init__(self, conv: ConvNorm, *, num_groups: int = 1, modulated: bool = True) -> None:
        if conv.in_channels % num_groups:
            raise ValueError(
                f"a deformable convolution of {conv.in_channels} channels does not divide into {num_groups} "
                "groups of offsets"
            )
        kernel_size, stride, dilation = conv.kernel_size[0], conv.stride[0], conv.dilation[0]
        super().__init__(
            conv.in_channels,
            (3 if modulated else 2) * num_groups * kernel_size**2,
            kernel_size,
            stride=stride,
            padding=dilation * (kernel_size // 2),
            dilation=dilation,
        )
        self.modulated = modulated

    def reset_parameters(self) -> None:
        """Predict zeros: a plain convolution (v1), or one of half the weight (v2)."""
        assert self.bias is not None
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


def apply_deformed(conv: ConvNorm, offset_conv: OffsetConv, x: Tensor) -> Tensor:
    """Apply `conv`, each tap moved by an offset that varies over the map.

    The channels that `offset_conv` predicts are 2 G T offsets in pixels of `x`, (dy, dx) for every tap of
    every group, then for v2 the G T masks before their sigmoid. Between pixels `x` is interpolated, outside
    it is 0. The operator runs in float32 at least: on some devices it has no kernel for bfloat16.

    Args:
        conv: weights and norm.
        offset_conv: made for `conv`.
        x: (B, in_channels, H, W).

    Returns:
        (B, out_channels, h, w) of the dtype of `x`.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    predicted = offset_conv(x).to(dtype)
    mask = None
    if offset_conv.modulated:
        num_offsets = 2 * predicted.shape[1] // 3
        predicted, mask = predicted[:, :num_offsets], predicted[:, num_offsets:].sigmoid()
    weight, bias = conv.folded_parameters()
    if predicted.is_cpu:
        predicted, mark = replace_non_finite(predicted)
        bias = mark.expand(len(weight)) if bias is None else bias + mark
    out = deform_conv2d(
        x.to(dtype),
        predicted,
        weight.to(dtype),
        None if bias is None else bias.to(dtype),
        stride=conv.stride,
        padding=conv.padding,
        dilation=conv.dilation,
        mask=mask,
    )
    return conv.apply_unfolded_norm(out.to(x.dtype))
