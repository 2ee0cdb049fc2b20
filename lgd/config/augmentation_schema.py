"""INPUT.AUGMENTATIONS: what an entry may be, and from what a recipe says to a checked entry.

A kind of entry is a frozen dataclass like the sections of the tree: a YAML key is the attribute in upper
case. A checked entry is a plain map of all its keys, since that is what is written out and read again.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Annotated, Any, get_args, get_type_hints

from lgd.config.values import (
    Interval,
    PositiveInt,
    ReadingError,
    UnitFloat,
    brief,
    coerce,
    describe,
)


@dataclass(frozen=True)
class _Rising:
    """Marks (least, most)."""


Factors = Annotated[tuple[Annotated[float, Interval(0, 10)], Annotated[float, Interval(0, 10)]], _Rising()]
Scale = Annotated[float, Interval(0, 4, above_low=True)]
Scales = Annotated[tuple[Scale, Scale], _Rising()]
Shares = Annotated[tuple[UnitFloat, UnitFloat], _Rising()]
Turn = Annotated[float, Interval(-0.5, 0.5)]
Count = Annotated[tuple[PositiveInt, PositiveInt], _Rising()]
MinVisible = Annotated[UnitFloat, "Least share of an object that is still in sight, or its label goes too."]
Probability = Annotated[UnitFloat, "Share of the samples that it is done to."]


@dataclass(frozen=True)
class ColorJitterConfig:
    """Other light: factors of 1, and a hue of 0, leave a picture as it is."""

    probability: Probability = 0.8
    brightness: Annotated[Factors, "Factors of the brightness."] = (0.6, 1.4)
    contrast: Annotated[Factors, "Factors of the contrast."] = (0.6, 1.4)
    saturation: Annotated[Factors, "Factors of the saturation."] = (0.6, 1.4)
    hue: Annotated[
        Annotated[tuple[Turn, Turn], _Rising()], "Turns of the colour wheel; costs most of the time."
    ] = (0.0, 0.0)


@dataclass(frozen=True)
class VerticalFlipConfig:
    """Upside down."""

    probability: Probability = 0.5


@dataclass(frozen=True)
class QuarterTurnConfig:
    """Turned counter-clockwise."""

    probability: Probability = 0.75
    turns: Annotated[
        tuple[Annotated[int, Interval(1, 3)], Annotated[int, Interval(1, 3)]],
        _Rising(),
        "Number of quarter turns.",
    ] = (1, 3)


@dataclass(frozen=True)
class LargeScaleJitterConfig:
    """Resized by a large range of factors, then cut or filled up to a fixed size."""

    probability: Probability = 1.0
    scale: Annotated[Scales, "Factors of the size: of what fits into SIZE, or of the sample's own."] = (
        0.1,
        2.0,
    )
    size: Annotated[
        tuple[PositiveInt, PositiveInt] | None, "(height, width) that come out, pixels; None: the sample's."
    ] = None
    min_visible: MinVisible = 0.1


@dataclass(frozen=True)
class CopyPasteConfig:
    """Objects of another picture put over this one."""

    probability: Probability = 0.5
    count: Annotated[Count, "Number of objects, as far as the other picture has them."] = (1, 10)
    min_visible: MinVisible = 0.1


@dataclass(frozen=True)
class MosaicConfig:
    """Four pictures that meet in a point, the sample's own at the top left."""

    probability: Probability = 0.5
    scale: Annotated[Scales, "Factors of the size that each would have alone."] = (0.5, 1.0)
    center: Annotated[Shares, "Where the four meet: shares of height and width."] = (0.3, 0.7)
    min_visible: MinVisible = 0.1


@dataclass(frozen=True)
class CutOutConfig:
    """Rectangles painted over."""

    probability: Probability = 0.5
    count: Annotated[Count, "Number of rectangles."] = (1, 3)
    area: Annotated[Shares, "Share of the picture that each covers."] = (0.02, 0.1)
    ratio: Annotated[Scales, "Height over width."] = (0.3, 3.3)
    min_visible: MinVisible = 0.1


KINDS: dict[str, type] = {
    "color_jitter": ColorJitterConfig,
    "vertical_flip": VerticalFlipConfig,
    "quarter_turn": QuarterTurnConfig,
    "large_scale_jitter": LargeScaleJitterConfig,
    "copy_paste": CopyPasteConfig,
    "mosaic": MosaicConfig,
    "cut_out": CutOutConfig,
}
"""By NAME."""

_NAME = "NAME"
_LONGEST_NAME = 100
"""Beyond, a name is nothing that somebody mistyped."""


def read_entry(value: object) -> dict[str, Any]:
    """Check one entry of the list, and fill in what it leaves to the defaults.

    Args:
        value: what YAML or the command line gave.

    Raises:
        ReadingError: it is no entry; says which of it and what it may be.
    """
    if not isinstance(value, dict):
        raise ReadingError(f"has the entry {brief(value)}; write {{{_NAME}: mosaic, PROBABILITY: 0.5}}")
    name = value.get(_NAME)
    if not isinstance(name, str) or name not in KINDS:
        said = f"{_NAME} {brief(name)}" if _NAME in value else f"no {_NAME}"
        raise ReadingError(f"has an entry with {said}{_hint(name, KINDS)}; known are {', '.join(KINDS)}")
    known = {field.name.upper(): field for field in fields(KINDS[name])}
    for key in value:
        if key not in (_NAME, *known):
            raise ReadingError(
                f"{name} has no {brief(key)}{_hint(key, known)}; its keys are {', '.join(known)}"
            )
    declared = get_type_hints(KINDS[name], include_extras=True)
    values = {
        key: _read(f"{name} {key}", value.get(key, field.default), declared[field.name])
        for key, field in known.items()
    }
    return {_NAME: name, **values}


def _read(where: str, value: object, declared: Any) -> Any:
    is_range = any(isinstance(extra, _Rising) for extra in get_args(declared)[1:])
    try:
        result = coerce(value, declared)
    except (ValueError, OverflowError, RecursionError):
        raise ReadingError(f"{where} expects {describe(declared)}, got {brief(value)}") from None
    if is_range and result[0] > result[1]:
        raise ReadingError(f"{where} {result} must be (least, most)")
    return result


def _hint(word: object, known: Iterable[str]) -> str:
    """Ask about the known word that is most like this one, if one is."""
    if not isinstance(word, str) or len(word) > _LONGEST_NAME:
        return ""
    spelled = {each.lower(): each for each in known}
    near = difflib.get_close_matches(word.lower(), spelled, n=1)
    return f"; did you mean {spelled[near[0]]}?" if near else ""
