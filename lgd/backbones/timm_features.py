"""Any feature extractor of timm (`pip install 'lgd[timm]'`) as a backbone."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from lgd.backbones.backbone import Backbone


class TimmFeatures(Backbone):
    """A model of timm without its classifier, not pretrained. Its map of stride 2^n is "stage{n}".

    The whole model is made, with every map, so that its names are those of timm's weights; what lies behind
    the last map that is returned does not train.

    Args:
        name: of the model, as timm knows it.
        out_features: maps to return, of "stage1", "stage2", ...
        norm: what becomes of its batch norms: "FrozenBN", "BN" (as they are) or "SyncBN".
        freeze_at: how many stages don't train: 0 none, 1 what makes stage 1, 2 also stage 2, ...

    Raises:
        ValueError: timm is not installed, or has no such model; a norm or a map that there is not.
    """

    def __init__(self, name: str, *, out_features: Sequence[str], norm: str, freeze_at: int) -> None:
        super().__init__()
        self.body = _make(name)
        levels = _find_levels(self.body)
        unknown = [each for each in out_features if each not in levels]
        if unknown or not out_features:
            raise ValueError(f"timm's {name} has no maps {unknown}; choose some of {list(levels)}")
        ordered = [each for each in levels if each in out_features]
        self.places = {each: levels[each] for each in ordered}
        self.channels = {each: self.body.feature_info.channels(levels[each]) for each in ordered}
        self.strides = {each: self.body.feature_info.reduction(levels[each]) for each in ordered}
        frozen = [f"stage{number}" for number in range(1, freeze_at + 1) if f"stage{number}" in levels]
        last_frozen = levels[frozen[-1]] if frozen else None
        _freeze_outside(self.body, name, after=last_frozen, until=levels[ordered[-1]])
        _settle_norms(self.body, norm)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) -> {name: (B, channels[name], H / strides[name], W / strides[name])}, rounded up."""
        maps: list[Tensor] = self.body(x)
        return {name: maps[place] for name, place in self.places.items()}


def import_timm() -> Any:
    """The library; raises ValueError, with what to install, where there is none."""
    try:
        import timm
    except ImportError:
        raise ValueError("timm is not installed; pip install 'lgd[timm]'") from None
    return timm


def require_model(name: str) -> None:
    """Raise ValueError where timm has no model of this name, with the nearest one."""
    known = import_timm().list_models()
    architecture = name.partition(".")[0]
    if architecture not in known:
        near = difflib.get_close_matches(architecture[:100], known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"timm has no model {name!r}{hint}")


def _make(name: str) -> Any:
    require_model(name)
    try:
        return import_timm().create_model(name, pretrained=False, features_only=True)
    except (
        RuntimeError,
        TypeError,
        ValueError,
        AssertionError,
    ) as error:  # models without maps fail as they like
        raise ValueError(f"timm makes no maps of {name}: {' '.join(str(error).split())}") from error


def _find_levels(body: Any) -> dict[str, int]:
    """The place of the last map of each stride that is a power of two, fine to coarse."""
    strides = body.feature_info.reduction()
    places = {stride: place for place, stride in enumerate(strides)}
    powers = [stride for stride in sorted(places) if stride > 1 and math.log2(stride).is_integer()]
    return {f"stage{int(math.log2(stride))}": places[stride] for stride in powers}


def _freeze_outside(body: Any, name: str, *, after: int | None, until: int) -> None:
    """Let parameters train that lie behind the map `after` and not behind the map `until`.

    timm registers layers in the order in which they are applied, and writes `blocks_1` for `blocks.1` where
    it takes a model apart.
    """
    names = [each.replace(".", "_").removeprefix("model_") for each, _ in body.named_parameters()]

    def end_of(place: int) -> int:
        module = body.feature_info[place]["module"].replace(".", "_") + "_"
        inside = [index for index, each in enumerate(names) if each.startswith(module)]
        if not inside:
            raise ValueError(
                f"where the stages of timm's {name} end is not known; set FREEZE_AT 0, and take its last map"
            )
        return inside[-1] + 1

    begin = 0 if after is None else end_of(after)
    end = len(names) if until == len(body.feature_info) - 1 else end_of(until)
    for index, parameter in enumerate(body.parameters()):
        parameter.requires_grad_(begin <= index < end)


def _settle_norms(body: Any, norm: str) -> None:
    """Freeze all batch norms, or those whose parameters don't train; timm knows its own kinds of them."""
    layers = import_timm().layers
    if norm not in ("FrozenBN", "SeparateFrozenBN", "BN", "SyncBN"):
        raise ValueError(f"models of timm have batch norms; choose FrozenBN, BN or SyncBN, not {norm!r}")
    for parent in list(body.modules()):
        for name, child in list(parent.named_children()):
            is_batch_norm = isinstance(child, nn.modules.batchnorm._BatchNorm)
            trains = "Frozen" not in norm and any(each.requires_grad for each in child.parameters())
            if is_batch_norm and not trains:
                setattr(parent, name, layers.freeze_batch_norm_2d(child))
    if norm == "SyncBN":
        layers.convert_sync_batchnorm(body)
