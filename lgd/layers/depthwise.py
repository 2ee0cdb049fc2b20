"""Convolutions of each channel by itself on a CPU, with faster gradients.

oneDNN, as in torch 2.14, has a quick gradient of such a weight for kernels of at most 3 columns. For wider
ones it takes the code of all other convolutions, which needs some ten times as long, in bfloat16 a hundred;
a kernel of 5 columns is one of 3 and one of 2 side by side. In bfloat16 the gradient of the map is as slow
where the kernel has a stride; it is taken in float32.
Legend: B images, C channels, k x l the kernel, h x w the size of the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_MAX_COLUMNS = 3


def depthwise_pays(x: Tensor, weight: Tensor, stride: Sequence[int]) -> bool:
    """Whether `depthwise_conv` has the faster gradients: `x`, (B, C, H, W), lies channels last on a CPU."""
    if torch.compiler.is_compiling() or not x.is_cpu or not torch.is_grad_enabled():
        return False
    dtype = _computed_type(x)
    is_wide = weight.requires_grad and weight.shape[3] > _MAX_COLUMNS
    is_strided = x.requires_grad and max(stride) > 1 and dtype == torch.bfloat16
    return (
        dtype in (torch.float32, torch.bfloat16)
        and (is_wide or is_strided)
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def depthwise_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """Convolve each channel by itself.

    Args:
        x: (B, C, H, W) channels last.
        weight: (C, 1, k, l).
        bias: (C,), or None.
        stride: of rows and columns.
        padding: likewise.

    Returns:
        (B, C, h, w) channels last.
    """
    dtype = _computed_type(x)
    bias = None if bias is None else bias.to(dtype)
    result: Tensor = _Depthwise.apply(x.to(dtype), weight.to(dtype), bias, stride, padding)
    return result


def _computed_type(x: Tensor) -> torch.dtype:
    """The type in which torch convolves: that of `x`, or what autocast turns it into."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype


class _Depthwise(torch.autograd.Function):
    """torch's own forward pass and gradient of the map; the weight's gradient by few columns at a time."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: Sequence[int],
        padding: Sequence[int],
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(x, weight, bias, stride, padding, groups=len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        for_x = for_weight = for_bias = None
        if ctx.needs_input_grad[0]:
            for_x = _map_gradient(gradient, x, weight, ctx.stride, ctx.padding)
        if ctx.needs_input_grad[1]:
            rows, columns = ctx.padding
            for_weight = _weight_gradient(
                gradient, F.pad(x, (columns, columns, rows, rows)), weight, ctx.stride
            )
        if ctx.needs_input_grad[2]:
            for_bias = gradient.sum(dim=(0, 2, 3))
        return for_x, for_weight, for_bias, None, None


def _map_gradient(
    gradient: Tensor, x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """(B, C, H, W), of the type of `x`."""
    if x.dtype == torch.bfloat16 and max(stride) > 1:
        gradient, x_in_float32, weight = gradient.float(), x.float(), weight.float()
        return _gradients(gradient, x_in_float32, weight, stride, padding, of_weight=False).to(x.dtype)
    return _gradients(gradient, x, weight, stride, padding, of_weight=False)


def _weight_gradient(gradient: Tensor, padded: Tensor, weight: Tensor, stride: Sequence[int]) -> Tensor:
    """(C, 1, k, l) from the result's gradient (B, C, h, w) and the map with its padding."""
    reach = (gradient.shape[3] - 1) * stride[1]
    parts = []
    for start in range(0, weight.shape[3], _MAX_COLUMNS):
        part = weight[..., start : start + _MAX_COLUMNS].contiguous()
        seen = padded[..., start : start + reach + part.shape[3]].contiguous(
            memory_format=torch.channels_last
        )
        parts.append(_gradients(gradient, seen, part, stride, (0, 0), of_weight=True))
    return torch.cat(parts, dim=3)


def _gradients(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    *,
    of_weight: bool,
) -> Tensor:
    """The gradient of the weight, or of the map."""
    channels = len(weight)
    found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
        gradient,
        x,
        weight,
        [channels],
        stride,
        padding,
        [1, 1],
        False,
        [0, 0],
        channels,
        [not of_weight, of_weight, False],
    )
    return found[1] if of_weight else found[0]
