"""The exponential moving average (EMA) of the student's weights, which is evaluated and kept beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lgd.ops.averaging import move_averages, warmed_up_decay

PREFIX = "student."
"""Of the averaged part's names in the whole model."""


class WeightAverage:
    """The moving average of a detector's weights over the steps so far.

    All that its state dict holds is averaged: parameters, and of the buffers what is floating point, so the
    running statistics of batch norm too, which then belong to the averaged weights. Whole numbers (the count
    of batches) are taken as they are. Every rank keeps its own, from equal weights: they stay equal.

    Args:
        detector: whose tensors change in place; the average begins as they are.
        decay: see `warmed_up_decay`.
        warmup: likewise, in updates.

    Attributes:
        tensors: the averages by their names in the detector.
        num_updates: how many steps they are of.
    """

    def __init__(self, detector: nn.Module, *, decay: float, warmup: float) -> None:
        self.decay = decay
        self.warmup = warmup
        self.num_updates = 0
        self._values = {name: value.detach() for name, value in detector.state_dict().items()}
        self.tensors = {name: value.clone() for name, value in self._values.items()}
        self._floating = [name for name, value in self._values.items() if value.is_floating_point()]
        self._others = [name for name in self._values if name not in set(self._floating)]

    def follow(self) -> None:
        """Take in the weights as they are after a step; asks nothing of the device."""
        self.num_updates += 1
        decay = warmed_up_decay(self.decay, self.num_updates, self.warmup)
        averages = [self.tensors[name] for name in self._floating]
        move_averages(averages, [self._values[name] for name in self._floating], decay)
        for name in self._others:
            self.tensors[name].copy_(self._values[name])

    def begin_anew(self) -> None:
        """Average from the weights as they are on."""
        self.num_updates = 0
        self._copy(self._values)

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` takes."""
        return {"tensors": dict(self.tensors), "num_updates": self.num_updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint.

        Raises:
            KeyError: a tensor is missing.
            RuntimeError: one has another shape.
        """
        self.num_updates = int(state["num_updates"])
        self._copy(state["tensors"])

    @torch.no_grad()
    def _copy(self, tensors: Mapping[str, Tensor]) -> None:
        for name, average in self.tensors.items():
            if average.shape != tensors[name].shape:
                raise RuntimeError(f"the average of {name} has another shape")
            average.copy_(tensors[name])


def weights_by_model(
    weights: Mapping[str, Tensor], averages: Mapping[str, Tensor] | None
) -> dict[str, dict[str, Tensor]]:
    """The whole model's weights as they are, "student", and "ema": with the student's average in their place.

    Args:
        weights: the whole model's, by name.
        averages: the student's, by their names in it; None where there is no average.
    """
    models = {"student": dict(weights)}
    if averages is not None:
        models["ema"] = {**weights, **{PREFIX + name: average for name, average in averages.items()}}
    return models
