"""Load weights of any known kind into a model, whole or not at all."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from lgd.weights.classes import (
    CLASS_LAYER,
    Classes,
    check_category_format,
    depends_on_classes,
    order_classes,
)
from lgd.weights.convention import adapt_to_input, check_input_convention
from lgd.weights.files import LoadedWeights, read_checkpoint_file
from lgd.weights.kind import BACKBONE, InputConvention
from lgd.weights.kinds import KINDS
from lgd.weights.reference import find_cell_anchors, reference_constants
from lgd.weights.report import LoadReport, WeightsError, list_names
from lgd.words import counted

_TEACHING_PARTS = ("teacher.", "adapter.")
_PRETRAINED = "pretrained."
"""A detector that is imitated beside LGD; it has weights of its own to begin with."""
_NOT_IN_CLASSIFIERS = re.compile(re.escape(BACKBONE) + r"(.*\.conv2_offset\.\w+|norm\d\.\w+)$")
"""What detectors add to a classifier's backbone: offsets of deformable convolutions, norms of Swin's maps."""

_COUNTER = ".num_batches_tracked"


def load_weights(
    model: nn.Module,
    path: str | Path,
    *,
    stride_in_1x1: bool,
    pixel_mean: Sequence[float],
    pixel_std: Sequence[float],
    image_format: str,
    classes: Classes | None = None,
    ignore_classes: bool = False,
) -> LoadReport:
    """Load a weights file into a distiller or a plain student, in place.

    A backbone fills `student.backbone` alone, a plain detector the student, a checkpoint with a teacher
    either. Anything else that is missing, unexpected or of another shape is an error, before which nothing
    has changed.

    Args:
        model: parameters under `student.`, and `teacher.` and `adapter.` where it distills.
        path: see `read_checkpoint_file`.
        stride_in_1x1: whether the model's bottlenecks stride in their first 1x1 convolution.
        pixel_mean: (3,) subtracted from the pixels, in `image_format`'s channel order.
        pixel_std: (3,) the pixels are divided by.
        image_format: "BGR" or "RGB".
        classes: of the data. The layers of one of our own files, which names its classes, are put into their
            order; None takes them as they are.
        ignore_classes: leave the layers of the classes as they are, where the weights have others: other
            names, or another number of them.

    Raises:
        WeightsError: the file cannot be read, or its weights do not fit the model, its input or its classes.
    """
    weights = read_checkpoint_file(path)
    convention = InputConvention(stride_in_1x1, image_format, tuple(pixel_mean), tuple(pixel_std))
    constants = reference_constants(
        pixel_mean=pixel_mean, pixel_std=pixel_std, cell_anchors=find_cell_anchors(model)
    )
    own = model.state_dict()
    try:
        problem = check_input_convention(weights, convention)
        if problem:
            raise WeightsError(problem)
        tensors, dropped = KINDS[weights.kind].to_ours(weights.tensors, constants)
        tensors, note = adapt_to_input(weights, tensors, convention)
        check_category_format(tensors, own)
        trained = Classes.of_file(weights.metadata) if weights.kind == "lgd" else None
        if trained is not None and classes is not None:
            tensors, other_classes = _settle_classes(model, tensors, trained, classes, ignore_classes)
        else:
            other_classes = _layers_of_other_width(own, tensors)
        if other_classes and not ignore_classes:
            raise _other_classes_error(own, tensors, other_classes)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None
    left_out = [name for name in tensors if _is_listed(name, other_classes)]
    used = {name: tensor for name, tensor in tensors.items() if name not in left_out}
    broken = [name for name, tensor in used.items() if name in own and not _is_finite(tensor, own[name])]
    if broken:
        raise WeightsError(
            f"{path}: {counted(len(broken), 'tensor holds', 'tensors hold')} NaN or infinity: "
            f"{list_names(broken)}"
        )
    return load_into(
        model,
        used,
        source=str(path),
        kind=KINDS[weights.kind].words,
        may_miss=(*_may_miss(weights, tensors, own), *other_classes),
        may_drop=_may_drop(weights, tensors, own),
        dropped=(*dropped, *left_out),
        note=note,
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
    note: str | None = None,
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
        note: what was done to the values, for the report.

    Raises:
        WeightsError: a name that is missing, unexpected or of another shape, each kind with its count and
            first names. The model is unchanged then.
    """
    own = model.state_dict()
    try:
        check_category_format((*tensors, *dropped), own)
    except WeightsError as error:
        raise WeightsError(f"{source}: {error}") from None
    kept = [name for name in own if name not in tensors]
    unused = [name for name in tensors if name not in own]
    shared = [name for name in own if name in tensors]
    problems = {
        "missing": [name for name in kept if not _is_listed(name, may_miss)],
        "unexpected": [name for name in unused if not _is_listed(name, may_drop)],
        "of another shape": [_shapes(name, own, tensors) for name in _misshapen(own, tensors)],
    }
    found = [f"{len(names)} {what}: {list_names(names)}" for what, names in problems.items() if names]
    if found:
        raise WeightsError(f"{source}: these weights ({kind}) do not fit the model; {'; '.join(found)}")
    with torch.no_grad():
        for name in shared:
            own[name].copy_(tensors[name])
    return LoadReport(source, kind, len(shared), tuple(kept), (*dropped, *unused), note)


def _is_finite(tensor: Tensor, own: Tensor) -> bool:
    """Whether a tensor is of finite numbers in the model's type too."""
    return bool(tensor.to(own.dtype).isfinite().all())


def _settle_classes(
    model: nn.Module, tensors: dict[str, Tensor], trained: Classes, wanted: Classes, ignore_classes: bool
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The weights with their classes in the data's order, and prefixes of the layers that cannot be used."""
    if ignore_classes and wanted.places_in(trained) is None:
        return tensors, _prefixes([name for name in tensors if depends_on_classes(name, tensors)])
    tensors = order_classes(tensors, trained, wanted, model)
    return tensors, _layers_of_other_width(model.state_dict(), tensors)


def _layers_of_other_width(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Prefixes of the class layers that differ in shape; none where other layers differ too."""
    misshapen = _misshapen(own, tensors)
    return _prefixes(misshapen) if all(CLASS_LAYER.match(name) for name in misshapen) else ()


def _prefixes(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.rpartition(".")[0] + "." for name in names))


def _other_classes_error(
    own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], layers: Sequence[str]
) -> WeightsError:
    shapes = [_shapes(name, own, tensors) for name in _misshapen(own, tensors)]
    return WeightsError(
        f"trained on another number of classes: {counted(len(layers), 'layer')} of another shape: "
        f"{list_names(shapes)}; set NUM_CLASSES as in the weights, or MODEL.WEIGHTS_IGNORE_CLASSES True to "
        "start these layers anew"
    )


def _misshapen(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> list[str]:
    return [name for name in own if name in tensors and tensors[name].shape != own[name].shape]


def _shapes(name: str, own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> str:
    return f"{name} {tuple(tensors[name].shape)} for {tuple(own[name].shape)}"


def _may_miss(
    weights: LoadedWeights, tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> tuple[str, ...]:
    """A backbone's file lacks all else, a plain detector's the teaching parts; no part may be there half."""
    missable = [name for name in own if name.endswith(_COUNTER)]
    kind = KINDS[weights.kind]
    if kind.is_backbone:
        missable += [name for name in own if not name.startswith(BACKBONE) or _NOT_IN_CLASSIFIERS.match(name)]
    else:
        missable += kind.lacks
        if not any(name.startswith(_TEACHING_PARTS) for name in tensors):
            missable += _TEACHING_PARTS
        if not any(name.startswith(_PRETRAINED) for name in tensors):
            missable.append(_PRETRAINED)
    return tuple(missable)


def _may_drop(
    weights: LoadedWeights, tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> tuple[str, ...]:
    """Of the parts that a model may be without, those that this one is without."""
    optional = (*_TEACHING_PARTS, _PRETRAINED, *KINDS[weights.kind].surplus)
    counters = (name for name in tensors if name.endswith(_COUNTER))
    return (*(part for part in optional if not any(name.startswith(part) for name in own)), *counters)


def _is_listed(name: str, listed: Sequence[str]) -> bool:
    return any(name.startswith(entry) if entry.endswith(".") else name == entry for entry in listed)
