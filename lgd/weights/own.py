"""Our own files: checkpoints, state dicts and students."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import NoneType
from typing import Any, TypeGuard

from lgd.weights.kind import InputConvention, Kind
from lgd.weights.report import WeightsError

_LARGEST_PIXEL = 1e6


def says_ours(metadata: Mapping[str, Any]) -> bool:
    """Whether a file says that we wrote it."""
    said = metadata.get("format")  # an array answers a comparison with another one
    return isinstance(said, str) and said == "lgd"


def _of_config(config: Any) -> InputConvention | None:
    """The convention that one of our checkpoints was trained with."""
    needed = {"INPUT.FORMAT", "MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD"}
    if not isinstance(config, Mapping) or not needed <= config.keys():
        return None
    stride, image_format = config.get("MODEL.RESNETS.STRIDE_IN_1X1"), config["INPUT.FORMAT"]
    pixels = [config["MODEL.PIXEL_MEAN"], config["MODEL.PIXEL_STD"]]
    is_sound = type(stride) in (bool, NoneType) and type(image_format) is str and all(map(is_colour, pixels))
    if not is_sound:
        raise WeightsError("what the file says of the input that it was trained with makes no sense")
    return InputConvention(stride, image_format, tuple(pixels[0]), tuple(pixels[1]))


def is_colour(values: Any) -> TypeGuard[Sequence[float]]:
    """Whether these are three numbers of a sensible size."""
    return (
        isinstance(values, list | tuple)
        and len(values) == 3
        and all(type(value) in (int, float) and abs(value) < _LARGEST_PIXEL for value in values)
    )


LGD = Kind(
    "lgd",
    "lgd checkpoint",
    lambda content: says_ours(content.metadata) or content.has("student.neck"),
    lambda tensors, _: (dict(tensors), ()),
    trained_with=lambda content: _of_config(content.metadata.get("config")),
)
"""What we write ourselves; it states its input by the configuration in it."""
