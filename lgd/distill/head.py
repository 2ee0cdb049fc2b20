"""How the teacher's losses meet the student's head, through which they go.

In the paper they train it as the student's own losses do. They can also leave it as it is, so that they train
the teacher and the features alone, train it by a share, or go through a slow copy of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from lgd.detectors.protocol import Assignment, Detector
from lgd.structures import Batch, Features

Weights = Mapping[str, Tensor]
"""Parameters of a detector's head by their names in the detector."""


def head_parameters(detector: Detector) -> dict[str, nn.Parameter]:
    """The parameters of what reads a detector's features."""
    module = cast(nn.Module, detector)
    return {
        f"{part}.{name}": parameter
        for part in detector.head_parts
        for name, parameter in module.get_submodule(part).named_parameters()
    }


def shared_by(parameters: Weights, share: float) -> Weights:
    """Take parameters as they are, but let only a share of the gradient through to them.

    Args:
        parameters: by name.
        share: in [0, 1]; at 0 no gradient is computed.
    """
    if share == 0:
        return {name: parameter.detach() for name, parameter in parameters.items()}
    return {name: _ShareOfGradient.apply(parameter, share) for name, parameter in parameters.items()}


class _ShareOfGradient(torch.autograd.Function):
    """Nothing on the way forth, a factor on the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, share: float) -> Tensor:
        ctx.share = share
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.share, None


class SlowHead:
    """The moving average of a head over the steps so far: state of the training, and of no model.

    Before step t it moves by 1 - d towards the head, with d = min(decay, t / (t + 1)). So it begins as the
    head, is then the plain mean of all heads so far, and forgets the old ones once the decay is the smaller.

    Args:
        decay: the largest d, in [0, 1].

    Attributes:
        weights: by name; none before the first step.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.weights: dict[str, Tensor] = {}

    @torch.no_grad()
    def follow(self, parameters: Weights, step: int) -> None:
        """Move towards the head as it is before `step`, counted from 0."""
        if not self.weights:
            self.weights = {name: x.detach().clone() for name, x in parameters.items()}
            return
        decay = min(self.decay, step / (step + 1))
        for name, parameter in parameters.items():
            self.weights[name].lerp_(parameter, 1 - decay)

    def load(self, weights: Weights, parameters: Weights) -> None:
        """Go on from `weights`, on the devices and in the types of the head's `parameters`."""
        self.weights = {
            name: torch.empty_like(x, requires_grad=False).copy_(weights[name])
            for name, x in parameters.items()
        }


class _Losses(nn.Module):
    """A detector's losses as the forward pass of a module, which is what parameters can be replaced for."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, features: Features, batch: Batch, assignment: Assignment | None) -> dict[str, Tensor]:
        return self.detector.compute_losses(features, batch, assignment)[0]


def losses_through(
    detector: Detector, weights: Weights, features: Features, batch: Batch, assignment: Assignment | None
) -> dict[str, Tensor]:
    """Do what `detector.compute_losses` does with other weights in the place of the head's own.

    Args:
        detector: whose buffers move on as ever.
        weights: by their names in the detector; others stay.
        features: {level: (B, C, h, w)}.
        batch: images and targets.
        assignment: of an earlier call, to be used again.
    """
    named = {f"detector.{name}": weight for name, weight in weights.items()}
    losses: dict[str, Tensor] = torch.func.functional_call(
        _Losses(detector), named, (features, batch, assignment)
    )
    return losses
