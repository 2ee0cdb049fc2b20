"""Classes by name: weights whose classes stand in another order than the data's are put into the data's.

Legend: K classes, R anchors, k descriptor width.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lgd.weights.report import WeightsError

logger = logging.getLogger(__name__)

_EMBEDDING = "teacher.category_embedding.weight"
_LABEL_ENCODER = "teacher.label_encoder."

CLASS_LAYER = re.compile(
    r"(student\.(head\.cls_score"
    r"|roi_heads\.box_predictor\.(cls_score|bbox_pred)"
    r"|roi_heads\.mask_head\.predictor)"
    r"|teacher\.(category_embedding|label_encoder\.(conv1|stn_desc\.(conv1|fc3))))\.\w+$"
)
"""Layers whose width follows from the number of classes; the label encoder's not, where they are embedded."""

_KEYS = ("names", "category_ids")

_BOX_NUMBERS = 4
"""What stands before the classes in the label encoder's descriptor."""


@dataclass(frozen=True)
class Classes:
    """The classes of data or of weights, by label.

    Attributes:
        names: K names.
        category_ids: K ids of the annotation file.
    """

    names: Sequence[str]
    category_ids: Sequence[int]

    @classmethod
    def of_file(cls, metadata: Mapping[str, Any]) -> Classes | None:
        """The classes that one of our files names; None where it names none.

        Raises:
            WeightsError: what it says is no list of classes.
        """
        said = metadata.get("classes")
        if said is None:
            return None
        names, ids = (said.get(key) if isinstance(said, Mapping) else None for key in _KEYS)
        if (
            isinstance(names, list | tuple)
            and isinstance(ids, list | tuple)
            and all(type(name) is str for name in names)
            and all(type(number) is int for number in ids)
            and len(names) == len(ids)
        ):
            return cls(tuple(names), tuple(ids))
        raise WeightsError("what the file says of its classes is no list of names and ids")

    def places_in(self, other: Classes) -> list[int] | None:
        """Of each class its label in `other`; None where the two do not have the same ones.

        Classes of the same name are told apart by their ids.
        """
        if list(self.names) == list(other.names):
            return list(range(len(self.names)))
        for mine, others in (
            (list(self.names), list(other.names)),
            (_pairs(self), _pairs(other)),
        ):
            if sorted(map(str, mine)) == sorted(map(str, others)) and len(set(mine)) == len(mine):
                return [others.index(each) for each in mine]
        return None


def _pairs(classes: Classes) -> list[Any]:
    return list(zip(classes.names, classes.category_ids, strict=True))


def depends_on_classes(name: str, tensors: Mapping[str, Tensor]) -> bool:
    """Whether what one of a model's tensors, by our names, says depends on which classes there are."""
    tensor = tensors[name]
    if CLASS_LAYER.match(name) is None or tensor.ndim == 0:
        return False
    if name.startswith(_LABEL_ENCODER) and _EMBEDDING in tensors:
        return False
    widths_without = {".bbox_pred.": _BOX_NUMBERS, ".mask_head.": 1}
    return all(part not in name or len(tensor) != width for part, width in widths_without.items())


def order_classes(
    tensors: Mapping[str, Tensor], trained: Classes, wanted: Classes, model: nn.Module
) -> dict[str, Tensor]:
    """Put the class layers of weights into the order of other classes.

    Args:
        tensors: the weights by our names.
        trained: the classes of the weights.
        wanted: those of the data.
        model: that they are for.

    Raises:
        WeightsError: the classes are others; or the model has a part that depends on their order.
    """
    places = wanted.places_in(trained)
    if places is None:
        raise WeightsError(
            f"trained on other classes ({_list(trained)}) than the data has ({_list(wanted)}); give the data "
            "the names of the weights where the same is meant, or train with MODEL.WEIGHTS_IGNORE_CLASSES "
            "True, which starts the layers of the classes anew"
        )
    if places == sorted(places):
        return dict(tensors)
    category_format = getattr(getattr(model, "teacher", None), "category_format", "")
    if _has_label_encoder(tensors) and category_format == "norm_classes":
        # Told as numbers between 0 and 1, by their order, which no weights can take back.
        raise WeightsError(
            f"the data has its classes in another order ({_list(wanted)}) than the weights "
            f"({_list(trained)}), and a teacher of LABEL_ENCODER.CATEGORY_FORMAT norm_classes knows them by "
            "their place; keep the order, or do without the teacher (MODEL.DISTILLATOR.ENABLED False)"
        )
    logger.info("classes put in the order of the data: %s instead of %s", _list(wanted), _list(trained))
    order, own = torch.tensor(places), model.state_dict()
    # Of another shape than the model's they cannot be used, which `load_into` says.
    return {
        name: _reorder(name, tensor, order)
        if depends_on_classes(name, tensors) and tensor.shape == own.get(name, tensor).shape
        else tensor
        for name, tensor in tensors.items()
    }


def check_category_format(names: Collection[str], own: Collection[str]) -> None:
    """Hold the teacher of weights against a model's, where both have one, by how it is told the classes.

    Args:
        names: of the weights.
        own: the model's.

    Raises:
        WeightsError: one embeds the classes and the other does not.
    """
    if not (_has_label_encoder(names) and _has_label_encoder(own)):
        return
    trained, wanted = _EMBEDDING in names, _EMBEDDING in own
    if trained != wanted:
        formats = {True: "embedding", False: "one_hot (or norm_classes)"}
        raise WeightsError(
            f"their teacher was trained with LABEL_ENCODER.CATEGORY_FORMAT {formats[trained]}, this model's "
            f"has {formats[wanted]}; set MODEL.DISTILLATOR.LABEL_ENCODER.CATEGORY_FORMAT as it was trained"
        )


def _has_label_encoder(names: Collection[str]) -> bool:
    return any(name.startswith(_LABEL_ENCODER) for name in names)


def _reorder(name: str, tensor: Tensor, order: Tensor) -> Tensor:
    """Put the classes of one tensor in order; one that has none, as of class-agnostic boxes, stays."""
    num_classes = len(order)
    if name == _EMBEDDING:
        return tensor[order] if len(tensor) == num_classes else tensor
    if name.startswith("teacher."):
        return _reorder_descriptor(name, tensor, order)
    if name.startswith("student.roi_heads.box_predictor.cls_score"):
        if len(tensor) != num_classes + 1:
            return tensor
        return tensor[torch.cat([order, torch.tensor([num_classes])])]  # the background comes last
    if name.startswith("student.roi_heads.box_predictor.bbox_pred"):
        if len(tensor) != _BOX_NUMBERS * num_classes:
            return tensor
        return tensor.reshape(num_classes, _BOX_NUMBERS, *tensor.shape[1:])[order].flatten(0, 1)
    if len(tensor) % num_classes:
        return tensor
    # R anchors, or one, of K classes each.
    return tensor.reshape(-1, num_classes, *tensor.shape[1:])[:, order].flatten(0, 1)


def _reorder_descriptor(name: str, tensor: Tensor, order: Tensor) -> Tensor:
    """Put the classes in order in the descriptor that a layer reads, or in the k x k matrix that it gives."""
    width = tensor.shape[-1]
    gives_matrix = ".fc3." in name
    if gives_matrix:
        width = round(len(tensor) ** 0.5)
        if width**2 != len(tensor):
            return tensor
    elif tensor.ndim == 1:
        return tensor
    if width < _BOX_NUMBERS + len(order):
        return tensor
    places = torch.arange(width)
    places[_BOX_NUMBERS : _BOX_NUMBERS + len(order)] = _BOX_NUMBERS + order
    if not gives_matrix:
        return tensor[:, places]
    return tensor.reshape(width, width, *tensor.shape[1:])[places][:, places].flatten(0, 1)


def _list(classes: Classes, limit: int = 8) -> str:
    shown = ", ".join(classes.names[:limit])
    more = len(classes.names) - limit
    return f"{shown}, ... {more} more" if more > 0 else shown
