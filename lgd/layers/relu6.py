"""ReLU6 (arXiv 1704.04861) in place, which keeps its result for the backward pass and not its input.

torch's own copies the input before it writes over it, and keeps the copy.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_LIMIT = 6.0


def relu6_(x: Tensor) -> Tensor:
    """Clamp to [0, 6] in place; `x` is the result of an operation and no view of one."""
    if torch.compiler.is_compiling() or not (torch.is_grad_enabled() and x.requires_grad):
        return F.relu6(x, inplace=True)
    result: Tensor = _ReLU6.apply(x)
    return result


class _ReLU6(torch.autograd.Function):
    """The result tells where the input was clamped, and what reads it keeps it anyway."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.mark_dirty(x.clamp_(0.0, _LIMIT))
        ctx.save_for_backward(x)
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (result,) = ctx.saved_tensors
        found: Tensor = torch.ops.aten.hardtanh_backward(gradients[0], result, 0.0, _LIMIT)
        return found
