"""The kinds of weights that are known: to know another, give it a record and a line here."""

from __future__ import annotations

from collections.abc import Mapping

from lgd.weights.backbones import DETECTRON2_BACKBONE, MSRA_BACKBONE, TORCHVISION_BACKBONE
from lgd.weights.efficientnet_lite import EFFICIENTNET_LITE
from lgd.weights.kind import Content, Kind
from lgd.weights.own import LGD
from lgd.weights.reference import DETECTRON2_MODEL, REFERENCE
from lgd.weights.swin import SWIN_BACKBONE, TORCHVISION_SWIN
from lgd.weights.timm_models import TIMM

_IN_ORDER = (
    LGD,
    TIMM,
    REFERENCE,
    DETECTRON2_MODEL,
    MSRA_BACKBONE,
    DETECTRON2_BACKBONE,
    TORCHVISION_BACKBONE,
    SWIN_BACKBONE,
    TORCHVISION_SWIN,
    EFFICIENTNET_LITE,
)
"""A file is of the first kind that knows it."""

KINDS: Mapping[str, Kind] = {kind.name: kind for kind in _IN_ORDER}
"""By name."""


def recognise(content: Content) -> Kind | None:
    """The kind of a file by what it holds, never by its name; None for one that is not known."""
    return next((kind for kind in _IN_ORDER if kind.is_told(content)), None)
