"""Load weights of any known kind into a model, whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from lgd.weights.backbones import (
    BACKBONE,
    Renamed,
    backbone_from_detectron2,
    backbone_from_detectron2_pkl,
    backbone_from_torchvision,
)
from lgd.weights.convention import check_input_convention
from lgd.weights.files import KIND_IN_WORDS, LoadedWeights, read_checkpoint_file
from lgd.weights.reference import (
    OURS_ONLY,
    PATTERN_DEPENDENT,
    find_cell_anchors,
    from_detectron2_model,
    from_reference,
    reference_constants,
)
from lgd.weights.report import LoadReport, WeightsError, list_names

_TEACHING_PARTS = ("teacher.", "adapter.")
_BACKBONE_READERS = {
    "msra-backbone": backbone_from_detectron2_pkl,
    "detectron2-backbone": backbone_from_detectron2,
    "torchvision-backbone": backbone_from_torchvision,
}


def load_weights(
    model: nn.Module,
    path: str | Path,
    *,
    stride_in_1x1: bool,
    pixel_mean: Sequence[float],
    pixel_std: Sequence[float],
    image_format: str,
) -> LoadReport:
    """Load a weights file into a distiller or a plain student, in place.

    A backbone fills `student.backbone` alone, a detector of detectron2 a plain student, a checkpoint with a
    teacher either. Anything else that is missing, unexpected or of another shape is an error, before which
    nothing has changed.

    Args:
        model: parameters under `student.`, and `teacher.` and `adapter.` where it distills.
        path: see `read_checkpoint_file`.
        stride_in_1x1: whether the model's bottlenecks stride in their first 1x1 convolution.
        pixel_mean: (3,) subtracted from the pixels, in `image_format`'s channel order.
        pixel_std: (3,) the pixels are divided by.
        image_format: "BGR" or "RGB".

    Raises:
        WeightsError: the file cannot be read, or its weights do not fit the model or its input.
    """
    weights = read_checkpoint_file(path)
    problem = check_input_convention(
        weights, stride_in_1x1=stride_in_1x1, pixel_std=pixel_std, image_format=image_format
    )
    if problem:
        raise WeightsError(f"{path}: {problem}")
    constants = reference_constants(
        pixel_mean=pixel_mean, pixel_std=pixel_std, cell_anchors=find_cell_anchors(model)
    )
    try:
        tensors, dropped = _to_our_names(weights, constants)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None
    return load_into(
        model,
        tensors,
        source=str(path),
        kind=KIND_IN_WORDS[weights.kind],
        may_miss=_may_miss(weights, model),
        may_drop=_may_drop(weights, model),
        dropped=dropped,
    )


def load_into(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    *,
    source: str,
    kind: str = "weights",
    may_miss: Sequence[str] = (),
    may_drop: Sequence[str] = (),
    dropped: Sequence[str] = (),
) -> LoadReport:
    """Copy tensors into the parameters and buffers of the same names, in place, cast to their types.

    Args:
        model: anything with a state dict.
        tensors: values by the model's names.
        source: what to call the weights in messages.
        kind: what they are, for the report.
        may_miss: names, or prefixes that end in ".", which the weights need not hold.
        may_drop: names, or prefixes that end in ".", which the model need not have.
        dropped: names that were left out of `tensors` knowingly, for the report.

    Raises:
        WeightsError: a name that is missing, unexpected or of another shape, each kind with its count and
            first names. The model is unchanged then.
    """
    own = model.state_dict()
    kept = [name for name in own if name not in tensors]
    unused = [name for name in tensors if name not in own]
    shared = [name for name in own if name in tensors]
    problems = {
        "missing": [name for name in kept if not _is_listed(name, may_miss)],
        "unexpected": [name for name in unused if not _is_listed(name, may_drop)],
        "of another shape": [
            f"{name} {tuple(tensors[name].shape)} for {tuple(own[name].shape)}"
            for name in shared
            if tensors[name].shape != own[name].shape
        ],
    }
    found = [f"{len(names)} {what}: {list_names(names)}" for what, names in problems.items() if names]
    if found:
        raise WeightsError(f"{source}: these weights ({kind}) do not fit the model; {'; '.join(found)}")
    with torch.no_grad():
        for name in shared:
            own[name].copy_(tensors[name])
    return LoadReport(source, kind, len(shared), tuple(kept), (*dropped, *unused))


def _to_our_names(weights: LoadedWeights, constants: Mapping[str, Tensor]) -> Renamed:
    if weights.kind == "lgd":
        return weights.tensors, ()
    if weights.kind == "reference":
        return from_reference(weights.tensors, constants), ()
    if weights.kind == "detectron2-model":
        return from_detectron2_model(weights.tensors, constants), ()
    return _BACKBONE_READERS[weights.kind](weights.tensors)


def _may_miss(weights: LoadedWeights, model: nn.Module) -> tuple[str, ...]:
    if weights.kind in _BACKBONE_READERS:
        return tuple(name for name in model.state_dict() if not name.startswith(BACKBONE))
    return () if weights.kind == "lgd" else OURS_ONLY


def _may_drop(weights: LoadedWeights, model: nn.Module) -> tuple[str, ...]:
    """Of the parts that a model may be without, those that this one is without."""
    optional: tuple[str, ...] = _TEACHING_PARTS
    if weights.kind == "reference":
        optional += PATTERN_DEPENDENT
    return tuple(part for part in optional if not any(name.startswith(part) for name in model.state_dict()))


def _is_listed(name: str, listed: Sequence[str]) -> bool:
    return any(name.startswith(entry) if entry.endswith(".") else name == entry for entry in listed)
