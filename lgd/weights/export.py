"""Write our models for the reference's code."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from lgd.files import replacing
from lgd.weights.reference import find_cell_anchors, reference_constants, to_reference


def write_reference_checkpoint(
    path: Path, model: nn.Module, *, pixel_mean: Sequence[float], pixel_std: Sequence[float]
) -> None:
    """Write a distiller as a checkpoint by the reference's official names.

    Args:
        path: the file to write; replaced only once the new one is whole.
        model: a distiller.
        pixel_mean: (3,) of its config.
        pixel_std: (3,) of its config.

    Raises:
        OSError: the file cannot be written.
    """
    constants = reference_constants(
        pixel_mean=pixel_mean, pixel_std=pixel_std, cell_anchors=find_cell_anchors(model)
    )
    state = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    with replacing(path) as file:
        torch.save({"model": to_reference(state, constants)}, file)
