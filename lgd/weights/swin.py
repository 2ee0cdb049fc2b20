"""Names of other libraries' Swin transformers, to ours; and their input's convention, to the config's.

Ours are Microsoft's names (`layers.0.blocks.0.attn.qkv.weight`), which detectron2 and the reference keep.
Both order the four patches of a merge alike, so that torchvision's weights need new names only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lgd.weights.kind import BACKBONE, TORCHVISION, InputConvention, Renamed, backbone_kind, rename

_MICROSOFT_NAME = re.compile(
    r"(patch_embed\.(proj|norm)|norm\d"
    r"|layers\.\d\.blocks\.\d+\.(norm[12]|attn\.(qkv|proj)|mlp\.fc[12])"
    r"|layers\.\d\.downsample\.(norm|reduction))\.(weight|bias)$"
    r"|layers\.\d\.blocks\.\d+\.attn\.relative_position_bias_table$"
    r"|absolute_pos_embed$"
)
_MICROSOFT_UNUSED = re.compile(r"(head|norm)\.(weight|bias)$|.*\.(attn_mask|attn\.relative_position_index)$")

_TORCHVISION_NAME = re.compile(r"features\.(\d)\.(.+)$")
_TORCHVISION_UNUSED = re.compile(r"(head|norm)\.(weight|bias)$|.*\.attn\.relative_position_index$")
_TORCHVISION_STEM = {"0": "patch_embed.proj", "2": "patch_embed.norm"}
_TORCHVISION_MLP = {"mlp.0.": "mlp.fc1.", "mlp.3.": "mlp.fc2."}

_PATCH_CONV = BACKBONE + "patch_embed.proj."


def swin_from_microsoft(tensors: Mapping[str, Tensor]) -> Renamed:
    """Put our prefix before a Swin transformer by Microsoft's names.

    The classifier with its norm, the attention masks and the position indices, which follow from the
    window's size, are dropped.

    Raises:
        WeightsError: unknown names.
    """
    return rename(
        tensors, lambda name: name if _MICROSOFT_NAME.match(name) else None, _MICROSOFT_UNUSED, "Swin"
    )


def swin_from_torchvision(tensors: Mapping[str, Tensor]) -> Renamed:
    """Rename a Swin transformer of torchvision (`features.1.0.attn.qkv.weight`, ...) to ours.

    The classifier with its norm and the position indices are dropped.

    Raises:
        WeightsError: unknown names; those of Swin v2 are.
    """
    return rename(tensors, _name_from_torchvision, _TORCHVISION_UNUSED, "Swin")


def _name_from_torchvision(name: str) -> str | None:
    match = _TORCHVISION_NAME.match(name)
    if match is None:
        return None
    stage, rest = int(match[1]), match[2]
    if stage == 0:
        number, _, tensor = rest.partition(".")
        ours = f"{_TORCHVISION_STEM.get(number)}.{tensor}"
    elif stage % 2:
        for theirs, named in _TORCHVISION_MLP.items():
            rest = rest.replace(theirs, named)
        ours = f"layers.{stage // 2}.blocks.{rest}"
    else:
        ours = f"layers.{stage // 2 - 1}.downsample.{rest}"
    return ours if _MICROSOFT_NAME.match(ours) else None


def has_patch_embedding(tensors: Mapping[str, Tensor]) -> bool:
    """Whether there is a patch embedding of three channels; a file may have lost it, or have another."""
    weight, bias = (tensors.get(_PATCH_CONV + name) for name in ("weight", "bias"))
    if weight is None or bias is None:
        return False
    return weight.ndim == 4 and weight.shape[1] == 3 and bias.shape == weight.shape[:1]


def adapt_patch_embedding(
    tensors: Mapping[str, Tensor],
    *,
    trained_mean: Sequence[float],
    trained_std: Sequence[float],
    pixel_mean: Sequence[float],
    pixel_std: Sequence[float],
    swap_channels: bool,
) -> dict[str, Tensor]:
    """Make a Swin transformer compute from the config's pixels what it computed from those of its training.

    The first layer is linear in the pixels and a LayerNorm follows it, so another channel order, mean and
    standard deviation go into its weights exactly; a factor common to all of them, which the LayerNorm
    takes out again, keeps them at the size at which they were trained.

    Args:
        tensors: by our names.
        trained_mean: (3,) subtracted in the weights' training, in its channel order.
        trained_std: (3,) divided by.
        pixel_mean: (3,) of the config, in its channel order.
        pixel_std: (3,) of the config.
        swap_channels: whether the two channel orders are each other's reverse.

    Returns:
        All tensors, the two of the patch embedding's convolution changed.
    """
    weight, bias = tensors[_PATCH_CONV + "weight"].double(), tensors[_PATCH_CONV + "bias"].double()
    mean_then, std_then = (torch.tensor(list(x), dtype=torch.float64) for x in (trained_mean, trained_std))
    mean_now, std_now = (torch.tensor(list(x), dtype=torch.float64) for x in (pixel_mean, pixel_std))
    if swap_channels:
        weight, mean_then, std_then = weight.flip(1), mean_then.flip(0), std_then.flip(0)
    bias = bias + (weight.sum(dim=(2, 3)) * (mean_now - mean_then) / std_then).sum(dim=1)
    ratio = std_now / std_then
    common = 1 / ratio.mean()
    adapted = {
        "weight": weight * (ratio * common)[:, None, None],
        "bias": bias * common,
    }
    return {**tensors, **{_PATCH_CONV + name: tensor.float() for name, tensor in adapted.items()}}


def _fit(
    tensors: dict[str, Tensor], trained: InputConvention, config: InputConvention
) -> tuple[dict[str, Tensor], str | None]:
    """Fit the first layer: the published weights see RGB, the recipes here and the reference's feed BGR."""
    if not has_patch_embedding(tensors):
        return tensors, None
    adapted = adapt_patch_embedding(
        tensors,
        trained_mean=trained.pixel_mean,
        trained_std=trained.pixel_std,
        pixel_mean=config.pixel_mean,
        pixel_std=config.pixel_std,
        swap_channels=trained.image_format != config.image_format,
    )
    return adapted, f"patch embedding fitted to {config.image_format} input with the config's mean and std"


SWIN_BACKBONE = backbone_kind(
    "swin-backbone",
    "Swin transformer",
    lambda content: content.has("patch_embed.proj"),
    swin_from_microsoft,
    trained_with=lambda _: TORCHVISION,
    mark="patch_embed.proj.weight",
    fit=_fit,
)
"""A Swin transformer by Microsoft's names."""

TORCHVISION_SWIN = backbone_kind(
    "torchvision-swin",
    "torchvision Swin transformer",
    lambda content: content.has("features.0") and any(".attn.qkv." in name for name in content.tensors),
    swin_from_torchvision,
    trained_with=lambda _: TORCHVISION,
    fit=_fit,
)
"""A Swin transformer by torchvision's names."""
