"""What is known of a kind of weights, in one record; `lgd.weights.kinds` lists them all."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lgd.weights.report import WeightsError, list_names
from lgd.words import counted, with_article

BACKBONE = "student.backbone."

Renamed = tuple[dict[str, Tensor], tuple[str, ...]]
"""Tensors by our names, and the names that were dropped knowingly."""


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


TORCHVISION = InputConvention(False, "RGB", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
"""What torchvision's classifiers are fed, and most others' after them."""


@dataclass(frozen=True)
class Content:
    """What a file holds.

    Attributes:
        tensors: by the names that the file gives them.
        metadata: the rest of its top level.
    """

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, Any]

    def has(self, root: str) -> bool:
        """Whether a tensor is called `root`, or lies below it."""
        return any(name == root or name.startswith(f"{root}.") for name in self.tensors)


Fit = Callable[[dict[str, Tensor], InputConvention, InputConvention], tuple[dict[str, Tensor], str | None]]


@dataclass(frozen=True)
class Kind:
    """A kind of weights.

    Attributes:
        name: of the kind.
        words: what to call it to people.
        is_told: whether a file that no kind before it knows is of this one.
        to_ours: its tensors by our names, from its own and the model's constants (`reference_constants`).
        trained_with: the input of its training; None where the file does not tell.
        is_backbone: it fills `student.backbone` alone.
        mark: a tensor of every file of the kind, found below any path where a backbone is filed there.
        lacks: names of ours that a whole file of the kind does not have.
        surplus: names of ours, or prefixes that end in ".", that it has and a model may be without.
        fit: fits its tensors, by our names, to another input than that of its training (the third argument
            is the model's), and says how; None where the configuration must follow the weights.
    """

    name: str
    words: str
    is_told: Callable[[Content], bool]
    to_ours: Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], Renamed]
    trained_with: Callable[[Content], InputConvention | None] = lambda _: None
    is_backbone: bool = False
    mark: str = ""
    lacks: tuple[str, ...] = ()
    surplus: tuple[str, ...] = ()
    fit: Fit | None = None


def backbone_kind(
    name: str,
    words: str,
    is_told: Callable[[Content], bool],
    to_ours: Callable[[Mapping[str, Tensor]], Renamed],
    **options: Any,
) -> Kind:
    """The record of a kind that fills the backbone alone, and whose names say all there is to know.

    Args:
        name: see `Kind`, as all the others.
        words: see there.
        is_told: see there.
        to_ours: the same without the model's constants.
        options: more fields of `Kind`.
    """
    return Kind(name, words, is_told, lambda tensors, _: to_ours(tensors), is_backbone=True, **options)


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
        raise WeightsError(
            f"{counted(len(unknown), 'name')} that {with_article(architecture)} does not have: "
            f"{list_names(unknown)}"
        )
    return renamed, tuple(dropped)
