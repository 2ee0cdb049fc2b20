"""How far the student's features are from the teacher's, once those of each channel are normalised.

Legend: B images, C channels, L levels of h x w cells.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from lgd.layers.recompute import cheaply_recomputed
from lgd.structures import Features

_EPS = 1e-5
_LEAST_DIVERGENCE = 1e-7
"""Below it a divergence is rounding, and the square root of it has no slope worth following."""
_NO_SHARE = -1e4
"""A logit so low that nothing is left of it, and finite, so that its gradient is 0 and not NaN."""


def distillation_loss(
    adapted: Features, taught: Features, counted: Mapping[str, Tensor] | None = None
) -> Tensor:
    """Mean squared difference of the normalised features over all elements of all levels.

    Args:
        adapted: {level: (B, C, h, w)} of the student.
        taught: the teacher's, same shapes; no gradient flows into them.
        counted: {level: (h, w) bool}, at least one cell of each; the others count nowhere. None for all.

    Returns:
        Scalar.
    """
    if counted is not None:
        return _loss_of_cells(adapted, taught, counted)
    total = torch.stack(
        [cheaply_recomputed(_squared_difference, x, taught[level].detach()) for level, x in adapted.items()]
    ).sum()
    return total / sum(x.numel() for x in adapted.values())


def _loss_of_cells(adapted: Features, taught: Features, counted: Mapping[str, Tensor]) -> Tensor:
    """`distillation_loss` of some cells; how many is known to the device alone."""
    totals, numbers = [], []
    for level, x in adapted.items():
        cells = counted[level]
        totals.append(cheaply_recomputed(_squared_difference, x, taught[level].detach(), cells))
        numbers.append(cells.sum() * (x.shape[0] * x.shape[1]))
    return torch.stack(totals).sum() / torch.stack(numbers).sum()


def _squared_difference(x: Tensor, taught: Tensor, cells: Tensor | None = None) -> Tensor:
    """Squared difference of the normalised maps (B, C, h, w), summed over the `cells` (h, w) that count."""
    difference = _instance_norm(x, cells) - _instance_norm(taught, cells)
    if cells is not None:
        difference = torch.where(cells, difference, 0)
    return difference.square().sum()


def _instance_norm(x: Tensor, cells: Tensor | None = None) -> Tensor:
    """Normalise each channel of each image, in at least float32; a map of one cell becomes 0.

    torch's own raises on such a map in training. With `cells` (h, w) mean and variance are of these alone.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    if cells is None and x.is_cpu:  # where `var_mean` takes ten times as long
        mean = x.mean(dim=(-2, -1), keepdim=True)
        variance = (x - mean).square().mean(dim=(-2, -1), keepdim=True)
    elif cells is None:
        variance, mean = torch.var_mean(x, dim=(-2, -1), correction=0, keepdim=True)
    else:
        mean = torch.where(cells, x, 0).sum(dim=(-2, -1), keepdim=True) / cells.sum()
        variance = torch.where(cells, x - mean, 0).square().sum(dim=(-2, -1), keepdim=True) / cells.sum()
    return (x - mean) * (variance + _EPS).rsqrt()


def divergence_loss(
    adapted: Features, taught: Features, counted: Mapping[str, Tensor] | None = None
) -> Tensor:
    """Square root of the Jensen-Shannon divergence, its mean over images and channels, averaged over levels.

    The paper leaves open how maps become distributions; here each channel of an image is one over its cells,
    the softmax of the normalised map.

    Source: Smooth and Stepwise Self-Distillation (arXiv 2303.05015).

    Args:
        adapted: {level: (B, C, h, w)} of the student.
        taught: the teacher's, same shapes; no gradient flows into them.
        counted: {level: (h, w) bool}, at least one cell of each; the others count nowhere. None for all.

    Returns:
        Scalar in [0, sqrt(log 2)].
    """
    distances = [
        cheaply_recomputed(_distance, x, taught[level].detach(), None if counted is None else counted[level])
        for level, x in adapted.items()
    ]
    return torch.stack(distances).mean()


def _distance(x: Tensor, taught: Tensor, cells: Tensor | None = None) -> Tensor:
    """Mean root of the divergence of the maps (B, C, h, w) over images and channels."""
    ours, theirs = _log_shares(x, cells), _log_shares(taught, cells)
    middle = torch.logaddexp(ours, theirs) - math.log(2)
    divergence = (_relative_entropy(ours, middle) + _relative_entropy(theirs, middle)) / 2
    differs = divergence > _LEAST_DIVERGENCE
    return torch.where(differs, torch.where(differs, divergence, 1).sqrt(), 0).mean()


def _log_shares(x: Tensor, cells: Tensor | None) -> Tensor:
    """Logarithms of each channel's shares of the cells: (B, C, h * w)."""
    x = _instance_norm(x, cells)
    if cells is not None:
        x = torch.where(cells, x, _NO_SHARE)
    return F.log_softmax(x.flatten(2), dim=-1)


def _relative_entropy(log_shares: Tensor, log_others: Tensor) -> Tensor:
    """(B, C) from logarithms of shares (B, C, cells)."""
    return (log_shares.exp() * (log_shares - log_others)).sum(dim=-1)
