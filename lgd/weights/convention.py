"""Which input weights expect; a mismatch trains without an error and costs AP in silence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Any

from torch import Tensor

from lgd.weights.files import LoadedWeights
from lgd.weights.report import WeightsError
from lgd.weights.swin import adapt_patch_embedding, has_patch_embedding


@dataclass(frozen=True)
class InputConvention:
    """What a network is fed, and where its bottlenecks stride.

    Attributes:
        stride_in_1x1: whether bottlenecks stride in their first 1x1 convolution; None where that is not
            known.
        image_format: "BGR" or "RGB".
        pixel_mean: (3,) subtracted from the pixels, in `image_format`'s order.
        pixel_std: (3,) the pixels are divided by.
    """

    stride_in_1x1: bool | None
    image_format: str
    pixel_mean: tuple[float, ...]
    pixel_std: tuple[float, ...]


_MEAN_BGR = (103.53, 116.28, 123.675)
_MEAN_RGB = (123.675, 116.28, 103.53)
_STD_BGR = (57.375, 57.12, 58.395)
_STD_RGB = (58.395, 57.12, 57.375)
_MSRA = InputConvention(True, "BGR", _MEAN_BGR, (1.0, 1.0, 1.0))
_FAIR_RESNEXT = InputConvention(False, "BGR", _MEAN_BGR, _STD_BGR)
_TORCHVISION = InputConvention(False, "RGB", _MEAN_RGB, _STD_RGB)
_LARGEST_PIXEL = 1e6
_SWIN_KINDS = ("swin-backbone", "torchvision-swin")


def check_input_convention(weights: LoadedWeights, config: InputConvention) -> str | None:
    """Hold the model's input and strides against those that the weights were trained with.

    Args:
        weights: as read from the file. ResNets state a convention by their kind, our own files by the
            configuration in them. Swin transformers are adapted instead (`adapt_to_input`); what the
            reference's and detectron2's detectors hold of it is checked with their other constants.
        config: the model's.

    Returns:
        What to set, for the user; None where all fits. Basic blocks have no 1x1 to stride in, so that
        setting is not looked at for them.

    Raises:
        WeightsError: what one of our files says of its input is nothing that we write.
    """
    trained = _trained_convention(weights)
    if trained is None:
        return None
    differing = []
    strides = (trained.stride_in_1x1, config.stride_in_1x1)
    if None not in strides and strides[0] != strides[1] and _has_bottlenecks(weights):
        differing.append(f"MODEL.RESNETS.STRIDE_IN_1X1 {trained.stride_in_1x1}")
    if trained.image_format != config.image_format:
        differing.append(f"INPUT.FORMAT {trained.image_format}")
    if not _close(trained.pixel_mean, config.pixel_mean):
        differing.append(f"MODEL.PIXEL_MEAN {list(trained.pixel_mean)}")
    if not _close(trained.pixel_std, config.pixel_std):
        differing.append(f"MODEL.PIXEL_STD {list(trained.pixel_std)}")
    if not differing:
        return None
    return f"these weights were trained otherwise than the config says; set {', '.join(differing)}"


def adapt_to_input(
    weights: LoadedWeights, tensors: Mapping[str, Tensor], config: InputConvention
) -> tuple[dict[str, Tensor], str | None]:
    """Fit a pretrained Swin transformer's first layer to the config's input; leave other weights as they are.

    Published Swin transformers see RGB divided by ImageNet's standard deviation, the recipes here and in
    the reference BGR as it is. See `adapt_patch_embedding`.

    Args:
        weights: as read from the file.
        tensors: the same by our names.
        config: the model's input.

    Returns:
        The tensors, and what was done to them, for the log.
    """
    trained = _TORCHVISION
    same = trained.image_format == config.image_format
    fits = (
        same and _close(trained.pixel_mean, config.pixel_mean) and _close(trained.pixel_std, config.pixel_std)
    )
    if weights.kind not in _SWIN_KINDS or fits or not has_patch_embedding(tensors):
        return dict(tensors), None
    adapted = adapt_patch_embedding(
        tensors,
        trained_mean=trained.pixel_mean,
        trained_std=trained.pixel_std,
        pixel_mean=config.pixel_mean,
        pixel_std=config.pixel_std,
        swap_channels=not same,
    )
    return adapted, f"patch embedding fitted to {config.image_format} input with the config's mean and std"


def _trained_convention(weights: LoadedWeights) -> InputConvention | None:
    if weights.kind == "torchvision-backbone":
        return _TORCHVISION
    if weights.kind == "msra-backbone":
        return _FAIR_RESNEXT if _is_grouped(weights) else _MSRA
    if weights.kind == "detectron2-backbone":
        author = weights.metadata.get("__author__")
        return _TORCHVISION if isinstance(author, str) and author == "torchvision" else None
    if weights.kind == "lgd":
        return _of_config(weights.metadata.get("config"))
    return None


def _of_config(config: Any) -> InputConvention | None:
    """The convention that one of our checkpoints was trained with."""
    needed = {"INPUT.FORMAT", "MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD"}
    if not isinstance(config, Mapping) or not needed <= config.keys():
        return None
    stride, image_format = config.get("MODEL.RESNETS.STRIDE_IN_1X1"), config["INPUT.FORMAT"]
    pixels = [config["MODEL.PIXEL_MEAN"], config["MODEL.PIXEL_STD"]]
    is_sound = type(stride) in (bool, NoneType) and type(image_format) is str and all(map(_is_colour, pixels))
    if not is_sound:
        raise WeightsError("what the file says of the input that it was trained with makes no sense")
    return InputConvention(stride, image_format, tuple(pixels[0]), tuple(pixels[1]))


def _is_colour(values: Any) -> bool:
    """Whether these are three numbers of a sensible size."""
    return (
        isinstance(values, list | tuple)
        and len(values) == 3
        and all(type(value) in (int, float) and abs(value) < _LARGEST_PIXEL for value in values)
    )


def _close(trained: Sequence[float], configured: Sequence[float]) -> bool:
    return all(math.isclose(a, b, rel_tol=0.02) for a, b in zip(trained, configured, strict=True))


def _is_grouped(weights: LoadedWeights) -> bool:
    conv = weights.tensors.get("res2_0_branch2b_w")
    return conv is not None and conv.ndim == 4 and conv.shape[0] != conv.shape[1]


def _has_bottlenecks(weights: LoadedWeights) -> bool:
    return any(".conv3." in name or "branch2c" in name for name in weights.tensors)
