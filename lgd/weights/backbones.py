"""Names of other libraries' ResNets, to ours (`student.backbone.*`)."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from lgd.weights.kind import TORCHVISION, Content, InputConvention, Renamed, backbone_kind, rename

_BATCH_NORM_EPS = 1e-5
_CAFFE2_CONV = {"branch1": "shortcut", "branch2a": "conv1", "branch2b": "conv2", "branch2c": "conv3"}
_CAFFE2_TENSOR = {
    "w": "weight",
    "bn_s": "norm.weight",
    "bn_gamma": "norm.weight",
    "bn_b": "norm.bias",
    "bn_beta": "norm.bias",
    "bn_rm": "norm.running_mean",
    "bn_running_mean": "norm.running_mean",
    "bn_riv": "norm.running_var",
    "bn_running_var": "norm.running_var",
}
_CAFFE2_NAME = re.compile(r"(?:res(\d)_(\d+)_(branch1|branch2[abc])|(?:res_)?conv1)_(\w+)$")
_CAFFE2_UNUSED = re.compile(r"(fc1000|pred)_[wb]$|(conv1|res\d_\d+_branch(1|2[abc]))_b$|.*_momentum$")

_TORCHVISION_NAME = re.compile(r"(?:layer(\d)\.(\d+)\.)?(conv|bn|downsample\.)(\d)\.(\w+)$")
_TORCHVISION_UNUSED = re.compile(r"fc\.|.*num_batches_tracked$")

_DETECTRON2_NAME = re.compile(r"(stem\.conv1|res\d\.\d+\.(conv\d|shortcut|conv2_offset))\.(norm\.)?\w+$")
_DETECTRON2_UNUSED = re.compile(r"(stem\.)?fc\.|.*num_batches_tracked$")

_MEAN_BGR = (103.53, 116.28, 123.675)
_MSRA = InputConvention(True, "BGR", _MEAN_BGR, (1.0, 1.0, 1.0))
_FAIR_RESNEXT = InputConvention(False, "BGR", _MEAN_BGR, (57.375, 57.12, 58.395))


def backbone_from_detectron2_pkl(tensors: Mapping[str, Tensor]) -> Renamed:
    """Rename a ResNet by Caffe2's names (`conv1_w`, `res2_0_branch2a_bn_gamma`, ...) to ours.

    Older files give each norm a scale and a bias only, the running statistics folded into them; those norms
    get mean 0 and a variance that makes 1 together with eps. Biases of convolutions, which detectron2's
    ResNets do not have and so ignore, are dropped with the classifier.

    Args:
        tensors: the blobs of detectron2's `ImageNetPretrained/MSRA/*.pkl` (or `FAIR`).

    Raises:
        WeightsError: blobs of unknown names.
    """
    renamed, dropped = rename(tensors, _name_from_caffe2, _CAFFE2_UNUSED, "ResNet")
    for name in [name for name in renamed if name.endswith(".norm.weight")]:
        norm = name.removesuffix("weight")
        scale = renamed[name]
        renamed.setdefault(norm + "running_mean", torch.zeros_like(scale))
        renamed.setdefault(norm + "running_var", torch.full_like(scale, 1.0 - _BATCH_NORM_EPS))
    return renamed, dropped


def backbone_from_torchvision(tensors: Mapping[str, Tensor]) -> Renamed:
    """Rename a ResNet of torchvision (`layer1.0.conv1.weight`, `layer1.0.downsample.1.bias`, ...) to ours.

    The classifier and the batch counters are dropped.

    Raises:
        WeightsError: unknown names.
    """
    return rename(tensors, _name_from_torchvision, _TORCHVISION_UNUSED, "ResNet")


def backbone_from_detectron2(tensors: Mapping[str, Tensor]) -> Renamed:
    """Put our prefix before a ResNet that already has detectron2's names (`stem.conv1.weight`, ...).

    The classifier and the batch counters are dropped.

    Raises:
        WeightsError: unknown names.
    """
    return rename(
        tensors, lambda name: name if _DETECTRON2_NAME.match(name) else None, _DETECTRON2_UNUSED, "ResNet"
    )


def _name_from_caffe2(name: str) -> str | None:
    match = _CAFFE2_NAME.match(name)
    if match is None or match[4] not in _CAFFE2_TENSOR:
        return None
    conv = f"res{match[1]}.{match[2]}.{_CAFFE2_CONV[match[3]]}" if match[1] else "stem.conv1"
    return f"{conv}.{_CAFFE2_TENSOR[match[4]]}"


def _name_from_torchvision(name: str) -> str | None:
    match = _TORCHVISION_NAME.match(name)
    if match is None:
        return None
    layer, block, kind, number, tensor = match.groups()
    is_shortcut = kind == "downsample."
    is_norm = kind == "bn" or (is_shortcut and number == "1")
    conv = "shortcut" if is_shortcut else f"conv{number}"
    prefix = f"res{int(layer) + 1}.{block}" if layer else "stem"
    return f"{prefix}.{conv}.{'norm.' if is_norm else ''}{tensor}"


def _convention_of_caffe2(content: Content) -> InputConvention:
    conv = content.tensors.get("res2_0_branch2b_w")
    is_grouped = conv is not None and conv.ndim == 4 and conv.shape[0] != conv.shape[1]
    return _FAIR_RESNEXT if is_grouped else _MSRA


def _convention_of_detectron2(content: Content) -> InputConvention | None:
    author = content.metadata.get("__author__")
    return TORCHVISION if isinstance(author, str) and author == "torchvision" else None


MSRA_BACKBONE = backbone_kind(
    "msra-backbone",
    "detectron2's ImageNet backbone",
    lambda content: "conv1_w" in content.tensors,
    backbone_from_detectron2_pkl,
    trained_with=_convention_of_caffe2,
)
"""A ResNet by Caffe2's names (MSRA and FAIR, from detectron2's ImageNet models)."""

DETECTRON2_BACKBONE = backbone_kind(
    "detectron2-backbone",
    "backbone converted for detectron2",
    lambda content: content.has("stem.conv1"),
    backbone_from_detectron2,
    trained_with=_convention_of_detectron2,
    mark="stem.conv1.weight",
)
"""A ResNet by detectron2's names (its conversions of torchvision's)."""

TORCHVISION_BACKBONE = backbone_kind(
    "torchvision-backbone",
    "torchvision backbone",
    lambda content: content.has("layer1.0") and "conv1.weight" in content.tensors,
    backbone_from_torchvision,
    trained_with=lambda _: TORCHVISION,
)
"""A ResNet by torchvision's names."""
