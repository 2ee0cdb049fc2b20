"""Weights that timm downloads, as a file that says so."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from lgd.backbones.timm_features import import_timm, require_model
from lgd.files import replacing
from lgd.weights.kind import BACKBONE, Content, InputConvention, Renamed, backbone_kind
from lgd.weights.own import is_colour
from lgd.weights.report import WeightsError

_FORMAT = "timm"


def fetch_from_timm(name: str, folder: Path) -> Path:
    """The file in `folder` with the weights of a pretrained model of timm, which downloads them once.

    Args:
        name: of the model, with its tag or without: "resnet18.a1_in1k".
        folder: where it is kept.

    Raises:
        WeightsError: timm is not installed, has no such model, or cannot get its weights.
    """
    file = folder / f"{name}.pth"
    try:
        require_model(name)
        if file.is_file():
            return file
        body = import_timm().create_model(name, pretrained=True, features_only=True)
    except Exception as error:  # of the hub, of the network, of timm: any
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise WeightsError(f"timm://{name}: {reason}") from None
    settings = getattr(body, "pretrained_cfg", None) or {}
    about = {"format": _FORMAT, "mean": list(settings["mean"]), "std": list(settings["std"])}
    with replacing(file) as stream:
        torch.save({"model": body.state_dict(), **about}, stream)
    return file


def _to_ours(tensors: Mapping[str, Tensor]) -> Renamed:
    return {f"{BACKBONE}body.{name}": tensor for name, tensor in tensors.items()}, ()


def _trained_with(content: Content) -> InputConvention:
    """RGB with timm's mean and deviation of the model, which are of pixels from 0 to 1."""
    mean, std = content.metadata.get("mean"), content.metadata.get("std")
    if not is_colour(mean) or not is_colour(std):
        raise WeightsError("what the file says of the input that it was trained with makes no sense")
    return InputConvention(
        None, "RGB", tuple(round(255 * each, 4) for each in mean), tuple(round(255 * each, 4) for each in std)
    )


TIMM = backbone_kind(
    "timm",
    "timm backbone",
    lambda content: str(content.metadata.get("format")) == _FORMAT,
    _to_ours,
    trained_with=_trained_with,
)
"""The maps of a model of timm, by its own names."""
