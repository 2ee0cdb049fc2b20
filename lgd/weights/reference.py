"""Names of the reference's LGD checkpoints and of detectron2's detectors, to and from ours.

The reference keeps the FPN as `student.backbone` and once more as `student.fpn`, the bottom-up network as
`student.raw_backbone`, its label encoder's Linears as Conv1d of kernel 1, and some constants as buffers: the
pixels' mean and deviation and the anchors of detectors that have anchors, and a Swin transformer's position
indices. Its students are detectron2's detectors under other roots.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lgd.weights.kind import Kind
from lgd.weights.report import WeightsError, list_names
from lgd.words import counted

_PREFIXES = (
    ("student.raw_backbone.", "student.backbone."),
    ("student.backbone.", "student.neck."),
    ("teacher.label_encoder_.", "teacher.label_encoder."),
    ("teacher.canoni_proj_1D.0.0.", "teacher.label_projection."),
    ("teacher.student_proj_2D.0.0.", "teacher.student_projection."),
    ("teacher.local_inst_proj_1D.", "teacher.instance_projection."),
    ("teacher.local_inst_proj_2D.", "teacher.instance_conv."),
    ("teacher.global_ctx_proj_1D.", "teacher.context_projection."),
    ("teacher.refinement_module.", "teacher.refinement."),
    ("teacher.multi_head_attn.", "teacher.attention."),
    ("adapter.distill.adapter.", "adapter."),
)
"""The reference's prefix and ours; the first that fits is taken, other names are the same on both sides."""

_ALIAS, _ALIASED = "student.fpn.", "student.backbone."
_CONSTANT = re.compile(
    r"student\.(pixel_(mean|std)|(proposal_generator\.)?anchor_generator\.cell_anchors\.\d+"
    r"|raw_backbone\..*\.relative_position_index)$"
)
_POSITION_TABLE = "relative_position_bias_table"
_POSITION_INDEX = "relative_position_index"
_DETECTRON2_ROOTS = (("student.raw_backbone.", "backbone.bottom_up."), ("student.", ""))
"""The reference's root and detectron2's; the first that fits is taken."""

_KERNEL_1_CONV = re.compile(r"teacher\.label_encoder\.(stn_\w+\.)?conv\d\.weight$")

OURS_ONLY = ("student.loss_normalizer",)
"""State of ours that the reference does not save."""

PATTERN_DEPENDENT = (
    "teacher.context_projection.",
    "teacher.attention.",
    "teacher.student_projection.",
    "teacher.label_encoder.",
    "teacher.label_projection.",
)
"""Parameters that the reference always has, and ours only where the context box or the pattern uses them."""


def reference_name(name: str) -> str:
    """The reference's name for our parameter or buffer `name`."""
    for theirs, ours in _PREFIXES:
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def reference_constants(
    *,
    pixel_mean: Sequence[float],
    pixel_std: Sequence[float],
    cell_anchors: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """The buffers of the reference's checkpoints that the config decides.

    Args:
        pixel_mean: (3,) in the images' channel order.
        pixel_std: (3,).
        cell_anchors: from `find_cell_anchors`; may be left out.

    Returns:
        float32 tensors by the reference's names.
    """
    constants = {
        "student.pixel_mean": torch.tensor(list(pixel_mean), dtype=torch.float32).reshape(3, 1, 1),
        "student.pixel_std": torch.tensor(list(pixel_std), dtype=torch.float32).reshape(3, 1, 1),
    }
    for name, anchors in (cell_anchors or {}).items():
        constants[name] = anchors.detach().to(torch.float32)
    return constants


def find_cell_anchors(model: nn.Module) -> dict[str, Tensor]:
    """A student's anchors, (A, 4) xyxy pixels around the origin, by the reference's names of their levels.

    RetinaNet has them, the two-stage detectors in their proposal generator; none of other detectors.
    """
    buffers = dict(model.named_buffers())
    return {
        f"{parent}.anchor_generator.cell_anchors.{level}": anchors
        for parent in ("student", "student.proposal_generator")
        if f"{parent}.cell_anchors" in buffers
        for level, anchors in enumerate(buffers[f"{parent}.cell_anchors"].cpu())
    }


def from_reference(
    tensors: Mapping[str, Tensor], constants: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Rename a reference checkpoint's tensors to ours.

    Args:
        tensors: the checkpoint's `model` entry.
        constants: from `reference_constants`; those that the checkpoint has too must agree.

    Returns:
        Tensors by our names, values untouched. The aliases and the constant buffers are left out.

    Raises:
        WeightsError: an alias differs from what it repeats, or a constant from the config's.
    """
    _check_aliases(tensors)
    _check_constants(tensors, constants or {})
    converted = {}
    for name, tensor in tensors.items():
        if not name.startswith(_ALIAS) and not _CONSTANT.match(name):
            ours = _our_name(name)
            if ours in converted:
                raise WeightsError(f"{name} and another name both mean {ours}")
            converted[ours] = tensor.squeeze(-1) if _KERNEL_1_CONV.match(ours) else tensor
    return converted


def from_detectron2_model(
    tensors: Mapping[str, Tensor], constants: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Rename a plain detector of detectron2 (`backbone.bottom_up.*`, `head.*`) to our student.

    The reference's student is that detector under other roots; arguments and errors are `from_reference`'s.
    """
    root, theirs = _DETECTRON2_ROOTS[0]
    as_reference = {
        root + name.removeprefix(theirs) if name.startswith(theirs) else f"student.{name}": tensor
        for name, tensor in tensors.items()
    }
    return from_reference(as_reference, constants)


def to_reference(state: Mapping[str, Tensor], constants: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename our state dict to the reference's names, with its aliases and constant buffers.

    Parameters that ours leaves out because the interaction pattern does not use them stay out.

    Args:
        state: the state dict of a distiller, or of a plain student.
        constants: from `reference_constants`; empty for detectors without anchors, whose constants the
            reference does not save.

    Raises:
        WeightsError: the teacher embeds its classes, which the reference's does not.
    """
    if "teacher.category_embedding.weight" in state:
        raise WeightsError(
            "the reference has no teacher of LABEL_ENCODER.CATEGORY_FORMAT embedding; write the student alone"
        )
    exported = _without_aliases(state, constants)
    for name in [name for name in exported if name.startswith(_ALIASED)]:
        exported[_ALIAS + name.removeprefix(_ALIASED)] = exported[name]
    return exported


def to_detectron2(state: Mapping[str, Tensor], constants: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the student of our state dict to detectron2's names; arguments as for `to_reference`."""
    exported = {}
    for name, tensor in _without_aliases(state, constants).items():
        for root, theirs in _DETECTRON2_ROOTS:
            if name.startswith(root):
                exported[theirs + name.removeprefix(root)] = tensor
                break
    return exported


def _without_aliases(state: Mapping[str, Tensor], constants: Mapping[str, Tensor]) -> dict[str, Tensor]:
    exported = dict(constants)
    for name, tensor in state.items():
        if name not in OURS_ONLY:
            value = tensor.unsqueeze(-1) if _KERNEL_1_CONV.match(name) else tensor
            exported[reference_name(name)] = value.detach().clone()
    for name in [name for name in exported if name.endswith(_POSITION_TABLE)]:
        index = _relative_position_index(num_offsets=len(exported[name]))
        exported[name.removesuffix(_POSITION_TABLE) + _POSITION_INDEX] = index
    return exported


def _relative_position_index(num_offsets: int) -> Tensor:
    """(S * S, S * S) int64: the row of a Swin transformer's position table for two cells of its window.

    Args:
        num_offsets: (2 S - 1)^2 for a window of S x S cells, the rows of the table.
    """
    span = math.isqrt(num_offsets)
    side = (span + 1) // 2
    cells = torch.cartesian_prod(torch.arange(side), torch.arange(side))
    offsets = cells[:, None] - cells[None] + side - 1
    return offsets[..., 0] * span + offsets[..., 1]


def _our_name(name: str) -> str:
    for theirs, ours in _PREFIXES:
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def _check_aliases(tensors: Mapping[str, Tensor]) -> None:
    differing = []
    for name in tensors:
        if name.startswith(_ALIAS):
            aliased = tensors.get(_ALIASED + name.removeprefix(_ALIAS))
            if aliased is None or not torch.equal(aliased.double(), tensors[name].double()):
                differing.append(name)
    if differing:
        raise WeightsError(
            f"{counted(len(differing), 'tensor')} of {_ALIAS}* unlike those of {_ALIASED}* that they repeat: "
            + list_names(differing)
        )


def _check_constants(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    for name, value in expected.items():
        found = tensors.get(name)
        if found is None:
            continue
        if found.shape != value.shape or not torch.allclose(found.float(), value, rtol=1e-5, atol=1e-4):
            raise WeightsError(
                f"{name} is {_brief(found)} in the weights and {_brief(value)} in the config; "
                "set MODEL.PIXEL_MEAN, MODEL.PIXEL_STD or MODEL.ANCHOR_GENERATOR as the weights were trained"
            )


def _brief(tensor: Tensor) -> str:
    if tensor.numel() > 4:
        return (
            f"{tuple(tensor.shape)} starting {[round(value, 3) for value in tensor.flatten()[:4].tolist()]}"
        )
    return str([round(value, 3) for value in tensor.flatten().tolist()])


REFERENCE = Kind(
    "reference",
    "checkpoint of the reference",
    lambda content: content.has("student.raw_backbone"),
    lambda tensors, constants: (from_reference(tensors, constants), ()),
    lacks=OURS_ONLY,
    surplus=PATTERN_DEPENDENT,
)
"""The reference's LGD checkpoint; what it holds of its input is among the constants."""

DETECTRON2_MODEL = Kind(
    "detectron2-model",
    "detectron2 model",
    lambda content: content.has("backbone.bottom_up"),
    lambda tensors, constants: (from_detectron2_model(tensors, constants), ()),
    lacks=OURS_ONLY,
)
"""A plain detector of detectron2."""
