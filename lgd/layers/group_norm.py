"""Group norm of bfloat16 maps, which a CPU computes in float32.

torch (2.14) takes four to eight times as long for its gradient in bfloat16 as in float32, and up to five
times for the norm of small maps; the copies cost less.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class GroupNorm(nn.GroupNorm):
    """torch's own, with that way to the same result."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` (B, C, H, W)."""
        return group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


def group_norm(
    x: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """Normalise each group of an image's channels, as `torch.nn.functional.group_norm`.

    Args:
        x: (B, C, H, W).
        num_groups: divides C.
        weight: (C,), or None.
        bias: (C,), or None.
        eps: added to variances.

    Returns:
        (B, C, H, W) of the type of `x`.
    """
    if x.is_cpu and x.dtype == torch.bfloat16 and not torch.compiler.is_compiling():
        result: Tensor = _InFloat32.apply(x, num_groups, weight, bias, eps)
        return result
    return F.group_norm(x, num_groups, weight, bias, eps)


class _InFloat32(torch.autograd.Function):
    """It keeps the map as it came."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, num_groups: int, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> Tensor:
        size = (len(x), x.shape[1], x.shape[2:].numel(), num_groups)
        weight, bias = (None if y is None else y.float() for y in (weight, bias))
        result, mean, scale = torch.ops.aten.native_group_norm(x.float(), weight, bias, *size, eps)
        ctx.save_for_backward(x, weight, mean, scale)
        ctx.size = size
        rounded: Tensor = result.to(x.dtype)
        return rounded

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale = ctx.saved_tensors
        wanted = [ctx.needs_input_grad[place] for place in (0, 2, 3)]
        for_x, for_weight, for_bias = torch.ops.aten.native_group_norm_backward(
            gradients[0].float(), x.float(), mean, scale, weight, *ctx.size, wanted
        )
        return None if for_x is None else for_x.to(x.dtype), None, for_weight, for_bias, None
