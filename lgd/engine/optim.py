"""Optimizers, learning-rate schedules and gradient clipping, as plain functions of the step."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn


def build_optimizer(
    parameters: Iterable[nn.Parameter],
    *,
    kind: str,
    lr: float,
    momentum: float,
    weight_decay: float,
    fused: bool = False,
    slower: Iterable[nn.Parameter] = (),
) -> torch.optim.Optimizer:
    """Build one side's optimizer: all with the same weight decay, and two groups where two rates are.

    Args:
        parameters: parameters of the student and adapter, or of the teacher.
        kind: "SGD" or "ADAMW" (betas 0.9 and 0.999).
        lr: learning rate of the first step; the schedule sets it anew before every step.
        momentum: SGD's momentum.
        weight_decay: coupled for SGD, decoupled for AdamW.
        fused: one kernel for all parameters; its roundings are its own.
        slower: more parameters, the second group where there are any; `set_lr` sets its rate.

    Raises:
        ValueError: unknown `kind`.
    """
    groups: list[dict[str, Any]] = [{"params": list(parameters)}]
    if own := list(slower):
        groups.append({"params": own})
    if kind == "SGD":
        return torch.optim.SGD(
            groups, lr=lr, momentum=momentum, weight_decay=weight_decay, fused=fused or None
        )
    if kind == "ADAMW":
        return torch.optim.AdamW(
            groups, lr=lr, betas=(0.9, 0.999), weight_decay=weight_decay, fused=fused or None
        )
    raise ValueError(f"unknown optimizer {kind!r}; known: SGD, ADAMW")


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Go on from a state, with all that has a parameter's shape laid in memory as the parameter lies.

    On a CPU torch's fused kernels (2.14) take numbers in the order of memory and do not look at strides:
    after a change of TRAIN.CHANNELS_LAST they would take one number's average for another's.

    Args:
        optimizer: of the parameters that `state` is of.
        state: of such an optimizer, see `torch.optim.Optimizer.state_dict`.
    """
    optimizer.load_state_dict(state)
    for parameter, kept in optimizer.state.items():
        for name, value in kept.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                kept[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


@dataclass(frozen=True)
class LRSchedule:
    """Learning rate as a pure function of the step, so that resuming needs no state.

    Attributes:
        base_lr: learning rate after the warm-up.
        kind: "WarmupMultiStepLR" or "WarmupCosineLR".
        steps: steps at which the rate is multiplied by `gamma` (multi-step only).
        gamma: factor at each of `steps`.
        warmup_factor: share of the rate at step 0.
        warmup_iters: steps until the full rate.
        warmup_method: "linear" or "constant".
        max_iter: where the cosine reaches zero.
    """

    base_lr: float
    kind: str
    steps: Sequence[int]
    gamma: float
    warmup_factor: float
    warmup_iters: float
    warmup_method: str
    max_iter: int

    def at(self, step: int) -> float:
        """The learning rate that step `step` (from 0) uses."""
        if self.kind == "WarmupCosineLR":
            decay = 0.5 * (1.0 + math.cos(math.pi * min(step, self.max_iter) / self.max_iter))
        else:
            decay = self.gamma ** bisect_right(self.steps, step)
        return self.base_lr * self._warmup(step) * decay

    def _warmup(self, step: int) -> float:
        if step >= self.warmup_iters:
            return 1.0
        if self.warmup_method == "constant":
            return self.warmup_factor
        done = step / self.warmup_iters
        return self.warmup_factor * (1.0 - done) + done


def set_lr(optimizer: torch.optim.Optimizer, lr: float, multiplier: float = 1.0) -> None:
    """Set the learning rate of the first group, and `multiplier` times it for the second, if there is one."""
    for group, factor in zip(optimizer.param_groups, (1.0, multiplier), strict=False):
        group["lr"] = lr * factor


def clip_gradients(
    parameters: Iterable[nn.Parameter],
    *,
    kind: Literal["value", "norm", "none"],
    limit: float,
    norm_type: float = 2.0,
) -> Tensor:
    """Clip gradients in place, each parameter by itself.

    Args:
        parameters: those to clip.
        kind: "value" limits every element to [-limit, limit]; "norm" scales a parameter's gradient
            so that its norm is at most `limit`; "none" leaves all as they are.
        limit: the bound.
        norm_type: p of the p-norm of "norm".

    Returns:
        The joint L2 norm of all gradients before clipping, a scalar on their device.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return torch.zeros(())
    joint_norm = nn.utils.get_total_norm(gradients, foreach=True)
    if kind == "value":
        torch._foreach_clamp_min_(gradients, -limit)
        torch._foreach_clamp_max_(gradients, limit)
    elif kind == "norm":
        norms = torch._foreach_norm(gradients, norm_type)
        scales = [torch.clamp(limit / (norm + 1e-6), max=1.0) for norm in norms]
        torch._foreach_mul_(gradients, scales)
    return joint_norm
