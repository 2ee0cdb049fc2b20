"""1x1 convolutions on one thread of a CPU, which torch computes the slow way.

With one thread and fewer than 16 images torch (2.14, `use_mkldnn` in ATen's Convolution.cpp) leaves them to
its oldest code, which takes about twice as long as oneDNN's, forward and backward. A 1x1 convolution does not
know what an image is: cut into 16 or more pieces, the pixels of a few images go the fast way.
Legend: B images, C channels in, O out, P pieces.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_MIN_IMAGES, _MAX_PIECES = 16, 64


def pointwise_pays(x: Tensor) -> bool:
    """Whether `pointwise_conv` is the faster way: `x`, (B, C, H, W), lies channels last on a CPU."""
    return (
        not torch.compiler.is_compiling()
        and x.is_cpu
        and x.dtype == torch.float32
        and torch.get_num_threads() == 1
        and x.shape[0] < _MIN_IMAGES
        and not torch.is_autocast_enabled("cpu")
        and x.is_contiguous(memory_format=torch.channels_last)
        and _count_pieces(x) > 0
    )


def pointwise_conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolve.

    Args:
        x: (B, C, H, W) channels last.
        weight: (O, C, 1, 1).
        bias: (O,), or None.

    Returns:
        (B, O, H, W) channels last.
    """
    result: Tensor = _Pointwise.apply(x, weight, bias)
    return result


class _Pointwise(torch.autograd.Function):
    """Its result is no view: autograd copies a view's gradient for each operation in place."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _join(F.conv2d(_cut(x), weight, bias), x).detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        for_x, for_weight, for_bias = torch.ops.aten.convolution_backward(
            _cut(gradient),
            _cut(x),
            weight,
            [len(weight)],
            [1, 1],
            [0, 0],
            [1, 1],
            False,
            [0, 0],
            1,
            ctx.needs_input_grad,
        )
        return None if for_x is None else _join(for_x, x), for_weight, for_bias


def _cut(x: Tensor) -> Tensor:
    """(B, C, H, W) channels last -> (P, C, 1, B * H * W / P), without a copy."""
    pieces = x.permute(0, 2, 3, 1).reshape(_count_pieces(x), 1, -1, x.shape[1])
    return pieces.permute(0, 3, 1, 2)


def _join(pieces: Tensor, like: Tensor) -> Tensor:
    """(P, C, 1, n) -> (B, C, H, W) channels last, with the B, H and W of `like`."""
    images, _, height, width = like.shape
    return pieces.permute(0, 2, 3, 1).reshape(images, height, width, -1).permute(0, 3, 1, 2)


def _count_pieces(x: Tensor) -> int:
    """The least number of equal pieces that is enough; 0 where there is none."""
    pixels = x.shape[0] * x.shape[2] * x.shape[3]
    return next((n for n in range(_MIN_IMAGES, _MAX_PIECES + 1) if pixels % n == 0), 0)
