"""Normalisation layers by the names that recipes use."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lgd.layers.group_norm import GroupNorm

_GROUPS = 32


class FrozenBatchNorm2d(nn.Module):
    """Batch norm whose statistics and affine parameters never change.

    Attributes:
        weight, bias, running_mean, running_var: (C,) buffers.
        folds: whether a convolution before it may take it into its weight.
    """

    folds = True
    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(num_features))
        self.register_buffer("bias", torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features) - eps)

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """Return (C,) scale and (C,) shift such that the layer is x * scale + shift."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale, self.bias - self.running_mean * scale

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` (B, C, H, W)."""
        scale, shift = self.scale_and_shift()
        return x * scale[:, None, None] + shift[:, None, None]


class SeparateFrozenBatchNorm2d(FrozenBatchNorm2d):
    """`FrozenBatchNorm2d` that a convolution does not take into its weight, rounded as in the reference."""

    folds = False

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` (B, C, H, W)."""
        if x.requires_grad:
            return super().forward(x)
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


def make_norm(name: str, num_features: int, eps: float = 1e-5) -> nn.Module | None:
    """Make the norm layer called `name` ("FrozenBN", "BN", "SyncBN", "GN", or "" for none).

    "GN" has the usual 32 groups, and groups of 8 channels where 32 would leave single ones.
    "SeparateFrozenBN" is "FrozenBN" for comparisons. `eps` is added to variances.

    Raises:
        ValueError: an unknown name, or channels that the groups don't divide.
    """
    num_groups = _GROUPS if num_features >= 2 * _GROUPS else max(1, num_features // 8)
    if name == "GN" and num_features % num_groups:
        raise ValueError(
            f"GN of {num_features} channels does not divide into {num_groups} groups; "
            "choose FrozenBN or BN, or other widths"
        )
    match name:
        case "":
            return None
        case "FrozenBN":
            return FrozenBatchNorm2d(num_features, eps=eps)
        case "SeparateFrozenBN":
            return SeparateFrozenBatchNorm2d(num_features, eps=eps)
        case "BN":
            return nn.BatchNorm2d(num_features, eps=eps)
        case "SyncBN":
            return nn.SyncBatchNorm(num_features, eps=eps)
        case "GN":
            return GroupNorm(num_groups, num_features, eps=eps)
    raise ValueError(f"unknown norm {name!r}; choose 'FrozenBN', 'BN', 'SyncBN', 'GN' or ''")


def freeze(module: nn.Module) -> None:
    """Stop `module`'s parameters from training and turn its batch norms into frozen ones, in place."""
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.modules.batchnorm._BatchNorm):
                setattr(parent, name, frozen_copy(child))


def frozen_copy(norm: nn.modules.batchnorm._BatchNorm) -> FrozenBatchNorm2d:
    """A frozen batch norm with the numbers of one that trains."""
    assert norm.running_mean is not None
    frozen = FrozenBatchNorm2d(norm.num_features, norm.eps).to(norm.running_mean)
    frozen.load_state_dict({name: norm.state_dict()[name] for name in frozen.state_dict()})
    return frozen
