"""Models that only predict."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from lgd.layers.conv import ConvNorm, set_winograd

Model = TypeVar("Model")


@torch.no_grad()
def for_prediction(model: Model, weights: Mapping[str, Tensor] | None = None) -> Model:
    """Copy a model for predictions, which take less time and differ in the last digits.

    Norms that are constant are multiplied into their convolutions once. On a CPU the weights lie channels
    last, which spares each convolution the copies of its maps; and Winograd's way, which on one image at a
    time costs more than it saves, is left out.

    Args:
        model: a module; it stays as it is.
        weights: what the copy has in the place of the model's own, by name; None for no other.

    Returns:
        A copy in evaluation mode, without gradients.
    """
    copied = copy.deepcopy(model)
    assert isinstance(copied, nn.Module)
    if weights is not None:
        copied.load_state_dict({**copied.state_dict(), **weights})
    copied.eval().requires_grad_(False)
    for module in copied.modules():
        if isinstance(module, ConvNorm):
            module.fold_norm()
    if all(tensor.is_cpu for tensor in copied.state_dict().values()):
        set_winograd(copied, False)
        copied.to(memory_format=torch.channels_last)
    return copied
