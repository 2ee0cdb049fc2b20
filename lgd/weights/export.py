"""Write our models for other code: the reference's, detectron2's, and whatever reads safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from lgd import __version__
from lgd.files import replacing
from lgd.weights.reference import find_cell_anchors, reference_constants, to_detectron2, to_reference
from lgd.weights.report import WeightsError

_STUDENT = "student."


def write_student(path: Path, model: nn.Module, metadata: Mapping[str, Any] | None = None) -> None:
    """Write the student alone, by our names, as safetensors.

    Args:
        path: the file to write; replaced only once the new one is whole.
        model: a distiller or a plain student.
        metadata: what to put beside the weights; values that are no strings are written as JSON.

    Raises:
        WeightsError: the file cannot be written.
    """
    texts = {"format": "pt", "producer": f"lgd {__version__}"}
    for name, value in (metadata or {}).items():
        texts[name] = value if isinstance(value, str) else json.dumps(value)
    student = {
        name: tensor.contiguous() for name, tensor in _state(model).items() if name.startswith(_STUDENT)
    }
    _write(path, safetensors.torch.save(student, texts))


def write_detectron2_model(
    path: Path, model: nn.Module, *, pixel_mean: Sequence[float], pixel_std: Sequence[float]
) -> None:
    """Write the student alone, by detectron2's names, as a `.pth` that detectron2's checkpointer reads.

    Detectron2 itself has no FCOS, ATSS, POTO or GFL of these layers; for them the file is of use with code
    that has.

    Args:
        path: the file to write; replaced only once the new one is whole.
        model: a distiller or a plain student.
        pixel_mean: (3,) of its config.
        pixel_std: (3,) of its config.

    Raises:
        WeightsError: the file cannot be written.
    """
    tensors = to_detectron2(_state(model), _constants(model, pixel_mean, pixel_std))
    _write(path, {"model": tensors, "__author__": f"lgd {__version__}"})


def write_reference_checkpoint(
    path: Path, model: nn.Module, *, pixel_mean: Sequence[float], pixel_std: Sequence[float]
) -> None:
    """Write a distiller or a plain student as a checkpoint by the reference's official names.

    Arguments and errors are `write_detectron2_model`'s.
    """
    tensors = to_reference(_state(model), _constants(model, pixel_mean, pixel_std))
    _write(path, {"model": tensors})


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}


def _constants(
    model: nn.Module, pixel_mean: Sequence[float], pixel_std: Sequence[float]
) -> dict[str, Tensor]:
    """The buffers of the reference's detector: those without anchors do not save them."""
    anchors = find_cell_anchors(model)
    if not anchors:
        return {}
    return reference_constants(pixel_mean=pixel_mean, pixel_std=pixel_std, cell_anchors=anchors)


def _write(path: Path, content: bytes | dict[str, Any]) -> None:
    try:
        with replacing(path) as file:
            if isinstance(content, bytes):
                file.write(content)
            else:
                torch.save(content, file)
    except OSError as error:
        raise WeightsError(f"cannot write {path}: {error.strerror}") from None
    except RuntimeError:  # what torch's zip writer makes of a failing disk
        raise WeightsError(f"cannot write {path}: the disk is full or failing") from None
