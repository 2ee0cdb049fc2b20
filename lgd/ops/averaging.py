"""Moving averages of weights: how fast they move, and one move."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def warmed_up_decay(decay: float, num_updates: int, warmup: float) -> float:
    """The decay of the update that makes the `num_updates`-th, from 1 on: d (1 - exp(-n / w)).

    So the first averages follow the weights closely, and forget those of the beginning soon.

    Source: the average itself is Polyak and Juditsky's (1992) with exponential weights; the warm-up is the
    one that detectors are trained with since YOLOv5 (with d 0.9999 and w 2000).

    Args:
        decay: d, what is left of the average in an update after the warm-up, in [0, 1).
        num_updates: n.
        warmup: w, updates until the decay is at 63 %, 95 % at three times as many; 0 for none.
    """
    return decay * -math.expm1(-num_updates / warmup) if warmup else decay


@torch.no_grad()
def move_averages(averages: Sequence[Tensor], values: Sequence[Tensor], decay: float) -> None:
    """Set every average to decay * average + (1 - decay) * value, in place and all at once.

    Args:
        averages: floating point.
        values: of the same shapes and types, on the same devices.
        decay: in [0, 1]; an average that equals its value stays as it is to the bit.
    """
    if averages:
        torch._foreach_lerp_(list(averages), list(values), 1.0 - decay)
