"""Which input a pretrained backbone expects; a mismatch trains without an error and costs AP in silence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lgd.weights.files import LoadedWeights


@dataclass(frozen=True)
class _Convention:
    stride_in_1x1: bool
    image_format: str
    pixel_mean: tuple[float, float, float]
    pixel_std: tuple[float, float, float]


_MEAN_BGR = (103.53, 116.28, 123.675)
_MEAN_RGB = (123.675, 116.28, 103.53)
_MSRA = _Convention(True, "BGR", _MEAN_BGR, (1.0, 1.0, 1.0))
_FAIR_RESNEXT = _Convention(False, "BGR", _MEAN_BGR, (57.375, 57.12, 58.395))
_TORCHVISION = _Convention(False, "RGB", _MEAN_RGB, (58.395, 57.12, 57.375))


def check_input_convention(
    weights: LoadedWeights, *, stride_in_1x1: bool, pixel_std: Sequence[float], image_format: str
) -> str | None:
    """Hold the model's input and strides against what a pretrained backbone was trained with.

    Args:
        weights: as read from the file; only backbones state a convention.
        stride_in_1x1: whether the model's bottlenecks stride in their first 1x1 convolution.
        pixel_std: (3,) the model divides pixels by.
        image_format: "BGR" or "RGB".

    Returns:
        What to set, for the user; None where all fits. Basic blocks have no 1x1 to stride in, so that
        setting is not looked at for them.
    """
    expected = _expected(weights)
    if expected is None:
        return None
    differing = []
    if expected.stride_in_1x1 != stride_in_1x1 and _has_bottlenecks(weights):
        differing.append(f"MODEL.RESNETS.STRIDE_IN_1X1 {expected.stride_in_1x1}")
    if expected.image_format != image_format:
        differing += [
            f"INPUT.FORMAT {expected.image_format}",
            f"MODEL.PIXEL_MEAN {list(expected.pixel_mean)}",
        ]
    if not all(math.isclose(a, b, rel_tol=0.02) for a, b in zip(expected.pixel_std, pixel_std, strict=True)):
        differing.append(f"MODEL.PIXEL_STD {list(expected.pixel_std)}")
    if not differing:
        return None
    return f"this backbone was trained otherwise than the config says; set {', '.join(differing)}"


def _expected(weights: LoadedWeights) -> _Convention | None:
    if weights.kind == "torchvision-backbone":
        return _TORCHVISION
    if weights.kind == "msra-backbone":
        return _FAIR_RESNEXT if _is_grouped(weights) else _MSRA
    if weights.kind == "detectron2-backbone":
        return _TORCHVISION if weights.metadata.get("__author__") == "torchvision" else None
    return None


def _is_grouped(weights: LoadedWeights) -> bool:
    conv = weights.tensors.get("res2_0_branch2b_w")
    return conv is not None and conv.shape[0] != conv.shape[1]


def _has_bottlenecks(weights: LoadedWeights) -> bool:
    return any(".conv3." in name or "branch2c" in name for name in weights.tensors)
