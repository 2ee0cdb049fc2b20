"""Names of other libraries' ResNets, to ours (`student.backbone.*`)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from lgd.weights.report import WeightsError, list_names

BACKBONE = "student.backbone."

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

Renamed = tuple[dict[str, Tensor], tuple[str, ...]]
"""Tensors by our names, and the names that were dropped knowingly."""


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


def rename(
    tensors: Mapping[str, Tensor],
    new_name: Callable[[str], str | None],
    unused: re.Pattern[str],
    architecture: str,
) -> Renamed:
    """Rename a backbone's tensors to ours.

    Args:
        tensors: by their library's names.
        new_name: gives our name within the backbone, None for one that is not known.
        unused: names that are dropped knowingly.
        architecture: what to call the backbone in errors.

    Raises:
        WeightsError: names that are neither known nor unused, with their count and the first of them.
    """
    renamed: dict[str, Tensor] = {}
    dropped, unknown = [], []
    for name, tensor in tensors.items():
        ours = None if unused.match(name) else new_name(name)
        if ours is not None:
            if BACKBONE + ours in renamed:
                raise WeightsError(f"{name} and another name both mean {ours}")
            renamed[BACKBONE + ours] = tensor
        elif unused.match(name):
            dropped.append(name)
        else:
            unknown.append(name)
    if unknown:
        raise WeightsError(f"{len(unknown)} names that a {architecture} does not have: {list_names(unknown)}")
    return renamed, tuple(dropped)


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
