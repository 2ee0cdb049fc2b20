"""Losses of dense detectors, summed: the caller divides by the normaliser of its choice."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

_EXACT_SOFTPLUS = 40.0  # log1p(exp(x)) is x to the last float64 digit from here on
_SMALLEST_AREA = torch.finfo(torch.float32).eps


def sigmoid_focal_loss(logits: Tensor, labels: Tensor, *, alpha: float, gamma: float) -> Tensor:
    """Sum of the focal loss (arXiv 1708.02002, eq. 5) over anchors and classes.

    Every class of every anchor is taken as negative first, in the logits' own layout; the one positive
    class of a foreground anchor is then exchanged. So no one-hot target of the logits' size is made.

    Args:
        logits: (..., K).
        labels: (...) int64, the class in [0, K), K for background, -1 for anchors to leave out.
        alpha: weight of the positive class, in [0, 1]; the negatives get 1 - alpha.
        gamma: focusing exponent, at least 0.

    Returns:
        Scalar.
    """
    num_classes = logits.shape[-1]
    counted = (labels >= 0).to(logits.dtype)
    foreground = ((labels >= 0) & (labels < num_classes)).to(logits.dtype)
    negatives = _negative_loss(logits, gamma) * (1 - alpha)
    true_logits = logits.gather(-1, labels.clamp(0, num_classes - 1).unsqueeze(-1)).squeeze(-1)
    # A positive of logit x costs what a negative of logit -x does.
    exchange = _negative_loss(-true_logits, gamma) * alpha - _negative_loss(true_logits, gamma) * (1 - alpha)
    return (negatives.sum(-1) * counted).sum() + (exchange * foreground).sum()


def reference_focal_loss(logits: Tensor, labels: Tensor, *, alpha: float, gamma: float) -> Tensor:
    """`sigmoid_focal_loss` rounded as in the reference: in float32 whatever the logits are.

    Its value differs from the exact one by some 1e-7 of it. Makes one-hot targets, so it is for comparisons.

    Args:
        logits: (..., K).
        labels: (...) int64, as in `sigmoid_focal_loss`.
        alpha: weight of the positive class.
        gamma: focusing exponent.

    Returns:
        Scalar, float32.
    """
    counted = labels >= 0
    logits, classes = logits[counted].float(), torch.arange(logits.shape[-1], device=logits.device)
    is_true = labels[counted].unsqueeze(-1) == classes
    probabilities = logits.sigmoid()
    certainty = torch.where(is_true, probabilities, 1 - probabilities)
    losses = F.binary_cross_entropy_with_logits(logits, is_true.float(), reduction="none")
    losses = losses * (1 - certainty) ** gamma
    return (torch.where(is_true, alpha, 1 - alpha) * losses).sum()


def _negative_loss(logits: Tensor, gamma: float) -> Tensor:
    """p^gamma * -log(1 - p) for p = sigmoid(logits)."""
    loss: Tensor = _NegativeLoss.apply(logits, gamma)
    return loss


class _NegativeLoss(torch.autograd.Function):
    """Keeps the logits alone for the backward pass: of a dense head they outweigh a tower's feature maps."""

    @staticmethod
    def forward(ctx: FunctionCtx, logits: Tensor, gamma: float) -> Tensor:
        ctx.save_for_backward(logits)
        ctx.gamma = gamma  # type: ignore[attr-defined]
        return logits.sigmoid().pow_(gamma).mul_(_softplus(logits))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (logits,) = ctx.saved_tensors
        probabilities = logits.sigmoid()
        inner = _softplus(logits).mul_(ctx.gamma).mul_(1 - probabilities)
        return inner.add_(probabilities).mul_(probabilities.pow_(ctx.gamma)).mul_(gradient), None


def _softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)), to a few roundings.

    On a CPU torch's own takes the logarithm number by number, five times as long.
    """
    if not x.is_cpu or torch.compiler.is_compiling():
        return F.softplus(x, threshold=_EXACT_SOFTPLUS)
    power = x.abs().neg_().exp_()  # log(1 + y) = 2 artanh(y / (2 + y))
    return power.div_(power + 2).atanh_().mul_(2).add_(x.clamp(min=0))


def soft_focal_loss(logits: Tensor, scores: Tensor, *, beta: float) -> Tensor:
    """Sum of the quality focal loss (arXiv 2006.04388, eq. 4) over anchors and classes.

    The cross entropy to a score between 0 and 1, times the distance from it to the power of `beta`.

    Args:
        logits: (...).
        scores: (...) in [0, 1], what the sigmoid of the logits is to be; no gradient flows into them.
        beta: focusing exponent, at least 0.

    Returns:
        Scalar.
    """
    losses = F.binary_cross_entropy_with_logits(logits, scores.detach(), reduction="none")
    return (losses * (logits.sigmoid() - scores.detach()).abs() ** beta).sum()


def quality_focal_loss(logits: Tensor, labels: Tensor, qualities: Tensor, *, beta: float) -> Tensor:
    """Sum of the quality focal loss (arXiv 2006.04388, eq. 4) over locations and classes.

    What `soft_focal_loss` gives for scores that are 0 but for the quality of each object's own class; no
    scores of the logits' size are made.

    Args:
        logits: (..., K).
        labels: (...) int64, the class in [0, K), K for background.
        qualities: (...) in [0, 1], what the score of the own class is to be; no gradient flows into them.
        beta: focusing exponent, at least 0.

    Returns:
        Scalar.
    """
    num_classes = logits.shape[-1]
    foreground = (labels < num_classes).to(logits.dtype)
    own = logits.gather(-1, labels.clamp(max=num_classes - 1).unsqueeze(-1)).squeeze(-1)
    targets = qualities.detach()
    positive = F.binary_cross_entropy_with_logits(own, targets, reduction="none")
    exchange = positive * (own.sigmoid() - targets).abs() ** beta - _negative_loss(own, beta)
    return _negative_loss(logits, beta).sum() + (exchange * foreground).sum()


def distribution_focal_loss(logits: Tensor, values: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of the distribution focal loss (arXiv 2006.04388, eq. 6).

    The cross entropy to the two whole numbers around a value, each the more the nearer it is.

    Args:
        logits: (..., n + 1) of the whole numbers 0 to n.
        values: (...) taken to lie in [0, n].
        weights: (...) at least 0.

    Returns:
        Scalar.
    """
    last = logits.shape[-1] - 1
    values = values.clamp(0, last)
    below = values.floor().clamp(max=last - 1)
    log_shares = F.log_softmax(logits, dim=-1)
    places = below.to(torch.int64).unsqueeze(-1)
    at_below, at_above = (log_shares.gather(-1, place).squeeze(-1) for place in (places, places + 1))
    share = values - below
    return -((at_below * (1 - share) + at_above * share) * weights).sum()


def smooth_l1_loss(predictions: Tensor, targets: Tensor, mask: Tensor, *, beta: float) -> Tensor:
    """Sum of the smooth L1 loss (arXiv 1504.08083, eq. 3) over the rows that `mask` selects.

    Args:
        predictions: (..., D).
        targets: (..., D), finite in every row.
        mask: (...) bool.
        beta: where the quadratic part ends; 0 is the L1 loss.

    Returns:
        Scalar.
    """
    losses = F.smooth_l1_loss(predictions, targets, reduction="none", beta=beta)
    return (losses.sum(-1) * mask.to(losses.dtype)).sum()


def giou_loss(predictions: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of the generalised IoU loss (arXiv 1902.09630, algorithm 1).

    Args:
        predictions: (..., 4) xyxy.
        targets: (..., 4) xyxy.
        weights: (...) at least 0; rows of weight 0 get no gradient, whatever their predictions are.

    Returns:
        Scalar; each row in [0, 2] times its weight.
    """
    predictions = torch.where((weights > 0)[..., None], predictions, targets)
    top_left, bottom_right = predictions[..., :2], predictions[..., 2:]
    target_top_left, target_bottom_right = targets[..., :2], targets[..., 2:]
    overlap = _area(
        torch.maximum(top_left, target_top_left), torch.minimum(bottom_right, target_bottom_right)
    )
    union = _area(top_left, bottom_right) + _area(target_top_left, target_bottom_right) - overlap
    hull = _area(torch.minimum(top_left, target_top_left), torch.maximum(bottom_right, target_bottom_right))
    iou = overlap / union.clamp(min=_SMALLEST_AREA)
    giou = iou - (hull - union) / hull.clamp(min=_SMALLEST_AREA)
    return ((1 - giou) * weights).sum()


def _area(top_left: Tensor, bottom_right: Tensor) -> Tensor:
    """Area of boxes (...), 0 where the corners (..., 2) are the wrong way round."""
    width, height = (bottom_right - top_left).clamp(min=0).unbind(-1)
    return width * height
