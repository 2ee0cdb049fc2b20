"""Pictures of an evaluation: precision over recall, and what is taken for what.

Drawn with Pillow: no plotting library, and milliseconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from lgd.evaluation.outcome import RECALLS, Confusion, Outcome
from lgd.inference.captions import Color, class_color, load_font

_WIDTH, _HEIGHT = 720, 480
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 210, 20, 46
_INK, _GRID, _PAPER = (29, 36, 51), (226, 230, 238), (255, 255, 255)
_RIGHT_COLOR, _WRONG_COLOR = (47, 91, 215), (217, 84, 30)
_MOST_LINES = 20
"""Classes that are drawn one by one; of more only their mean."""

_MOST_CLASSES = 60
"""Of a confusion matrix: of more, those that have the most objects."""

_NAME = 18
"""Characters of a name."""


def draw_outcomes(outcomes: Mapping[str, Outcome]) -> dict[str, Tensor]:
    """Draw what became of the detections of each model: (3, h, w) uint8 RGB by what is shown.

    Args:
        outcomes: by model, the student first.
    """
    curves = {model: outcome.curves for model, outcome in outcomes.items()}
    pictures = {"precision_recall": draw_precision(curves)}
    for model, outcome in outcomes.items():
        name = "confusion" if model == "student" else f"confusion_{model}"
        pictures[name] = draw_confusion(outcome.confusion)
    return pictures


def draw_precision(curves: Mapping[str, Mapping[str, np.ndarray]]) -> Tensor:
    """Draw a thick line for the mean of each model, and a thin one for each class of the first.

    Args:
        curves: by model and class, precision at `RECALLS`, in [0, 1].
    """
    picture = Image.new("RGB", (_WIDTH, _HEIGHT), _PAPER)
    draw = ImageDraw.Draw(picture)
    _draw_axes(draw)
    lines: list[tuple[str, np.ndarray, Color, int]] = []
    for label, (name, curve) in enumerate(next(iter(curves.values()), {}).items()):
        lines.append((name, curve, class_color(label), 1))
    if len(lines) > _MOST_LINES:
        lines = []
    measured = {model: classes for model, classes in curves.items() if classes}
    for number, (model, classes) in enumerate(measured.items()):
        color = (_INK, _WRONG_COLOR, _RIGHT_COLOR)[number % 3]
        lines.append((f"{model}, mean", np.mean(list(classes.values()), axis=0), color, 3))
    for row, (name, curve, color, width) in enumerate(reversed(lines)):
        points = [_place(recall, value) for recall, value in zip(RECALLS, curve, strict=True)]
        draw.line(points, fill=color, width=width)
        y = _TOP + 10 + row * 20
        draw.line([(_WIDTH - _RIGHT + 14, y), (_WIDTH - _RIGHT + 38, y)], fill=color, width=width)
        text = f"{_shorten(name)} {100 * float(curve.mean()):.1f}"
        draw.text((_WIDTH - _RIGHT + 46, y), text, _INK, load_font(13), anchor="lm")
    return _to_tensor(picture)


def draw_confusion(confusion: Confusion) -> Tensor:
    """Draw a square table whose cells are the darker, the more of their row they hold."""
    names, counts = _largest(confusion)
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    cell = max(12, min(56, 640 // len(names)))
    font = load_font(max(9, min(13, cell - 3)))
    shown = [_shorten(name) for name in names]
    margin = 14 + round(max(font.getlength(name) for name in shown))
    picture = Image.new("RGB", (margin + len(names) * cell + 12,) * 2, _PAPER)
    draw = ImageDraw.Draw(picture)
    for row, name in enumerate(shown):
        y = margin + row * cell
        draw.text((margin - 6, y + cell / 2), name, _INK, font, anchor="rm")
        for column in np.flatnonzero(counts[row]).tolist():
            color = _RIGHT_COLOR if row == column else _WRONG_COLOR
            share = float(shares[row, column])
            x = margin + column * cell
            draw.rectangle((x, y, x + cell - 2, y + cell - 2), _mix(color, 0.08 + 0.87 * share))
            if cell >= 30:
                ink = _PAPER if share > 0.55 else _INK
                draw.text((x + cell / 2, y + cell / 2), str(counts[row, column]), ink, font, anchor="mm")
    _draw_upright(picture, shown, margin, cell)
    if len(names) == _MOST_CLASSES + 1:
        draw.text((4, 4), "the largest", _INK, font)
    end = margin + len(names) * cell
    draw.rectangle((margin - 1, margin - 1, end - 1, end - 1), outline=_GRID)
    return _to_tensor(picture)


def _largest(confusion: Confusion) -> tuple[list[str], np.ndarray]:
    """Names and counts of the classes that occur, the largest where they are many; the last is nothing."""
    counts = np.array(confusion.counts)
    objects = counts[:-1].sum(axis=1) + counts[:, :-1].sum(axis=0)
    order = np.argsort(-objects, kind="stable")[:_MOST_CLASSES]
    chosen = np.append(np.sort(order[objects[order] > 0]), len(objects))
    return [confusion.classes[each] for each in chosen], counts[np.ix_(chosen, chosen)]


def _draw_upright(picture: Image.Image, names: Sequence[str], margin: int, cell: int) -> None:
    """Write the columns' names from below upwards."""
    font = load_font(max(9, min(13, cell - 3)))
    strip = Image.new("RGB", (margin, len(names) * cell), _PAPER)
    draw = ImageDraw.Draw(strip)
    for row, name in enumerate(names):
        draw.text((6, (row + 0.5) * cell), name, _INK, font, anchor="lm")
    picture.paste(strip.transpose(Image.Transpose.ROTATE_90), (margin, 0))


def _draw_axes(draw: ImageDraw.ImageDraw) -> None:
    font = load_font(13)
    for tick in (0, 0.2, 0.4, 0.6, 0.8, 1):
        (x, bottom), (left, y) = _place(tick, 0), _place(0, tick)
        draw.line([(x, bottom), (x, _TOP)], fill=_GRID)
        draw.line([(left, y), (_WIDTH - _RIGHT, y)], fill=_GRID)
        draw.text((x, bottom + 6), f"{tick:g}", _INK, font, anchor="ma")
        draw.text((left - 6, y), f"{tick:g}", _INK, font, anchor="rm")
    draw.text(_place(0.5, -0.075), "recall", _INK, font, anchor="ma")
    draw.text((6, 2), "precision", _INK, font)


def _place(recall: float, precision: float) -> tuple[float, float]:
    width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
    return _LEFT + recall * width, _TOP + (1 - precision) * height


def _mix(color: Color, share: float) -> Color:
    """A colour on paper, `share` of it."""
    red, green, blue = (round(255 + share * (each - 255)) for each in color)
    return red, green, blue


def _shorten(name: str) -> str:
    return name if len(name) <= _NAME else name[: _NAME - 1] + "…"


def _to_tensor(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()
