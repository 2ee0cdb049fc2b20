"""What `lgd data` says of a data set: for people, and for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from textwrap import shorten
from typing import Any

import numpy as np

from lgd.inspect.advice import Advice, Value
from lgd.inspect.contents import Contents, find_doubts
from lgd.inspect.histogram import bars, octaves, quantiles, say_quantiles
from lgd.words import counted

_MOST_CLASSES = 30
"""Classes that the words list; JSON has all."""
_MOST_SIZES = 6
_LONGEST_NAME = 40


def to_json(
    contents: Contents, warnings: Sequence[str], advice: Sequence[Advice], trainable: bool
) -> dict[str, Any]:
    """Return what was found as what JSON can hold.

    Args:
        contents: of the set.
        warnings: lines, the reader's first.
        advice: what to set; none where there is nothing to train on.
        trainable: whether it can be trained on.
    """
    dropped: Counter[str] = Counter()
    for remark in contents.remarks:
        dropped[remark.kind] += remark.count
    return {
        "name": contents.name,
        "layout": contents.layout,
        "images": contents.images,
        "objects": contents.objects,
        "crowds": contents.crowds,
        "classes": [
            {"name": each.name, "objects": each.objects, "images": each.images} for each in contents.classes
        ],
        "warnings": list(warnings),
        "dropped": dict(dropped),
        "trainable": trainable,
        "images_without_objects": contents.images - contents.used_images,
        "masks": contents.masked,
        "difficult": contents.difficult,
        "objects_per_image": quantiles(contents.per_image),
        "widths": quantiles(contents.widths),
        "heights": quantiles(contents.heights),
        "box_sizes": quantiles(contents.box_sizes),
        "advice": {each.key: {"value": each.value, "why": each.why} for each in advice},
    }


def to_words(contents: Contents, warnings: Sequence[str], advice: Sequence[Advice]) -> str:
    """Return the same for people, as lines."""
    return "\n".join(
        [
            contents.name,
            *_facts(contents),
            *_paragraph("classes: in how many images, and how many objects", _class_lines(contents)),
            *_paragraph("sizes of the pictures, pixels", _picture_sizes(contents)),
            *_paragraph(
                "sizes of the boxes: square root of the area, pixels", _octave_bars(contents.box_sizes)
            ),
            *_paragraph("objects of an image", _octave_bars(contents.per_image[contents.per_image > 0])),
            *_paragraph("worth a look", [f"- {line}" for line in warnings]),
            *_paragraph("what to set, and why", _advice_lines(advice)),
            "",
        ]
    )


def warnings_of(contents: Contents) -> list[str]:
    """What the reader dropped or repaired, and what else is worth a look, a line each."""
    return [*(remark.text for remark in contents.remarks), *find_doubts(contents)]


def _facts(contents: Contents) -> Iterator[str]:
    without = contents.images - contents.used_images
    empty = f", {without} of them without objects (left out of training)" if without else ""
    crowds = f", and {counted(contents.crowds, 'crowd')} (regions to ignore)" if contents.crowds else ""
    difficult = f"; difficult: {contents.difficult}" if contents.difficult else ""
    masks = {0: "none has a mask", contents.objects: "all have masks"}
    masked = masks.get(contents.masked, f"with masks: {contents.masked}")
    yield f"  layout   {contents.layout}"
    yield f"  images   {contents.images}{empty}"
    yield f"  objects  {contents.objects}{difficult}; {masked}{crowds}"
    yield f"           an image has {say_quantiles(contents.per_image)}"


def _paragraph(title: str, lines: Sequence[str]) -> list[str]:
    return ["", f"  {title}", *(f"    {line}" for line in lines)] if lines else []


def _class_lines(contents: Contents) -> list[str]:
    classes = contents.classes
    most = sorted(classes, key=lambda each: -each.objects)
    shown = classes if len(classes) <= _MOST_CLASSES else most[: _MOST_CLASSES // 2]
    names = [shorten(each.name, _LONGEST_NAME) for each in shown]
    width = max(map(len, names), default=0)
    digits = len(str(max((each.images for each in shown), default=0)))
    rows = [
        (
            f"{name:<{width}}  in {counted(each.images, 'image ', 'images'):>{digits + 7}}",
            each.objects,
        )
        for name, each in zip(names, shown, strict=True)
    ]
    lines = list(bars(rows))
    if len(shown) < len(classes):
        rarest = ", ".join(f"{each.name} {each.objects}" for each in most[-5:])
        lines.append(f"... {len(classes)} classes in all; the rarest: {rarest}")
    return lines


def _picture_sizes(contents: Contents) -> list[str]:
    if contents.images == 0:
        return []
    pairs = np.stack([contents.widths, contents.heights], axis=1)
    sizes, counts = np.unique(pairs, axis=0, return_counts=True)
    if len(sizes) <= _MOST_SIZES:
        rows = [
            (f"{width} x {height}", count)
            for (width, height), count in zip(sizes, counts.tolist(), strict=True)
        ]
        return list(bars(rows))
    return [
        *_octave_bars(contents.short_sides),
        f"short side {say_quantiles(contents.short_sides)}",
        f"width {say_quantiles(contents.widths)}; height {say_quantiles(contents.heights)}",
    ]


def _octave_bars(values: Any) -> list[str]:
    rows = [
        (str(low) if high - low == 1 else f"{low} to {high - 1}", count)
        for low, high, count in octaves(values)
    ]
    return list(bars(rows))


def _advice_lines(advice: Sequence[Advice]) -> list[str]:
    return [f"{each.key} {_as_typed(each.value)}  # {each.why}" for each in advice]


def _as_typed(value: Value) -> str:
    text = str(value)
    return f'"{text}"' if isinstance(value, list) else text
