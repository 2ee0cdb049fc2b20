"""Plots as SVG, by hand: they stand inside of the page, need no library, and can be read as text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 460, 330
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 14, 44
_ROW = 26
PALETTE = ("#2f5bd7", "#d9541e", "#1b8a5a", "#a33ea1", "#b58900", "#0e8fa8", "#7a4a2b", "#5d6675")
"""Colours of lines, told apart by most people."""


@dataclass(frozen=True)
class Line:
    """A line of a plot.

    Attributes:
        name: for the legend; "" for none.
        xs: in [0, 1].
        ys: in [0, 1].
        color: as CSS has it.
        width: pixels.
        dashed: whether it is.
    """

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    color: str
    width: float = 2
    dashed: bool = False


def plot_lines(lines: Sequence[Line], x_name: str, y_name: str) -> str:
    """Plot lines over the unit square."""
    parts = list(_frame(x_name, y_name))
    for line in lines:
        points = " ".join(f"{_x(x):.1f},{_y(y):.1f}" for x, y in zip(line.xs, line.ys, strict=True))
        dashes = ' stroke-dasharray="5 5"' if line.dashed else ""
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{line.color}" stroke-width="{line.width}" '
            f'stroke-linejoin="round"{dashes}/>'
        )
    legend = "".join(
        f'<span><i style="background:{line.color}"></i>{escape(line.name)}</span>'
        for line in lines
        if line.name
    )
    return _svg(parts, _WIDTH, _HEIGHT, f"{y_name} over {x_name}") + (
        f'<div class="legend">{legend}</div>' if legend else ""
    )


def plot_calibration(scores: Sequence[tuple[float, float, float, int]]) -> str:
    """Plot a bar of the share that is right for each bin of scores, beside what it should be.

    Args:
        scores: lower end, upper end, share that is right and number of each bin.
    """
    parts = list(_frame("score", "share that is right"))
    for low, high, right, count in scores:
        if not count:
            continue
        x, width = _x(low) + 1, _x(high) - _x(low) - 2
        parts.append(
            f'<rect x="{x:.1f}" y="{_y(right):.1f}" width="{width:.1f}" height="{_y(0) - _y(right):.1f}" '
            f'fill="#2f5bd7" fill-opacity="{0.9 if count >= 30 else 0.35}"><title>scores {low:.1f} to '
            f"{high:.1f}: {100 * right:.1f} % of {count} are right</title></rect>"
        )
    parts.append(
        f'<line x1="{_x(0)}" y1="{_y(0)}" x2="{_x(1)}" y2="{_y(1)}" stroke="#5d6675" stroke-dasharray="5 5"/>'
    )
    return _svg(parts, _WIDTH, _HEIGHT, "calibration")


def plot_bars(rows: Sequence[tuple[str, float, str]], color: str = PALETTE[0]) -> str:
    """Plot horizontal bars of a name, a value from 0 on, and what is written behind it."""
    largest = max((value for _, value, _ in rows), default=0) or 1
    parts = []
    for number, (name, value, text) in enumerate(rows):
        y = number * _ROW
        width = 210 * value / largest
        parts.append(f'<text x="100" y="{y + 18}" text-anchor="end">{escape(name)}</text>')
        parts.append(
            f'<rect x="108" y="{y + 5}" width="{max(width, 1):.1f}" height="{_ROW - 9}" rx="2" '
            f'fill="{color}"/>'
        )
        parts.append(f'<text x="{114 + width:.1f}" y="{y + 18}">{escape(text)}</text>')
    return _svg(parts, _WIDTH, len(rows) * _ROW, "bars")


def plot_intervals(rows: Sequence[tuple[str, float, float, float]]) -> str:
    """Plot differences with their intervals about zero: name, value, low, high."""
    reach = max((abs(end) for _, *ends in rows for end in ends), default=0) or 1
    left, right = 150, _WIDTH - 16
    middle, half = (left + right) / 2, (right - left) / 2

    def place(value: float) -> float:
        return middle + half * value / reach

    height = len(rows) * _ROW
    parts = [f'<line x1="{middle}" y1="0" x2="{middle}" y2="{height}" stroke="#5d6675"/>']
    for number, (name, value, low, high) in enumerate(rows):
        y = number * _ROW + _ROW / 2
        color = PALETTE[2] if low > 0 else PALETTE[1] if high < 0 else PALETTE[7]
        parts.append(f'<text x="{left - 10}" y="{y + 5}" text-anchor="end">{escape(_shorten(name))}</text>')
        parts.append(
            f'<line x1="{place(low):.1f}" y1="{y}" x2="{place(high):.1f}" y2="{y}" stroke="{color}" '
            f'stroke-width="3" stroke-linecap="round"/><circle cx="{place(value):.1f}" cy="{y}" r="5" '
            f'fill="{color}"><title>{value:+.2f} ({low:+.2f} to {high:+.2f})</title></circle>'
        )
    parts.append(f'<text x="{left}" y="{height + 16}">-{reach:.1f}</text>')
    parts.append(f'<text x="{right}" y="{height + 16}" text-anchor="end">+{reach:.1f}</text>')
    parts.append(f'<text x="{middle}" y="{height + 16}" text-anchor="middle">0</text>')
    return _svg(parts, _WIDTH, height + 24, "differences")


def plot_heatmap(names: Sequence[str], counts: Sequence[Sequence[int]]) -> str:
    """Plot a square table whose cells are the darker, the more of their row they hold."""
    number = len(names)
    cell = 58 if number <= 6 else 40 if number <= 12 else 24 if number <= 24 else 18 if number <= 45 else 12
    font = 13 if cell >= 24 else 11 if cell >= 18 else 9
    margin = 20 + min(120, max(map(len, names)) * font * 0.62)
    with_numbers = cell >= 40
    parts = []
    for row, (name, values) in enumerate(zip(names, counts, strict=True)):
        y, total = margin + row * cell, sum(values) or 1
        middle = y + cell / 2 + font / 3
        shown = escape(_shorten(name))
        parts.append(
            f'<text x="{margin - 8}" y="{middle:.0f}" text-anchor="end" font-size="{font}">{shown}</text>'
        )
        x = margin + row * cell + cell / 2 + font / 3
        parts.append(
            f'<text transform="translate({x:.0f} {margin - 8:.0f}) rotate(-90)" font-size="{font}">'
            f"{shown}</text>"
        )
        for column, value in enumerate(values):
            if not value:
                continue
            share = value / total
            color = PALETTE[0] if row == column else PALETTE[1]
            left = margin + column * cell
            title = f"{name} found as {names[column]}: {value} ({100 * share:.0f} %)"
            parts.append(
                f'<rect x="{left:.0f}" y="{y:.0f}" width="{cell - 1}" height="{cell - 1}" fill="{color}" '
                f'fill-opacity="{0.08 + 0.87 * share:.2f}"><title>{escape(title)}</title></rect>'
            )
            if with_numbers:
                ink = "#fff" if share > 0.55 else "#1d2433"
                parts.append(
                    f'<text x="{left + cell / 2:.0f}" y="{middle:.0f}" text-anchor="middle" fill="{ink}">'
                    f"{value}</text>"
                )
    side = margin + number * cell
    parts.append(
        f'<rect x="{margin}" y="{margin}" width="{number * cell}" height="{number * cell}" fill="none" '
        'stroke="#c9d0dc"/>'
    )
    svg = _svg(parts, round(side + 4), round(side + 4), "confusion matrix")
    return svg.replace("<svg ", f'<svg style="width:{round(side + 4)}px" ', 1)


def _shorten(name: str, limit: int = 18) -> str:
    return name if len(name) <= limit else name[: limit - 1] + "…"


def _x(value: float) -> float:
    return _LEFT + value * (_WIDTH - _LEFT - _RIGHT)


def _y(value: float) -> float:
    return _TOP + (1 - value) * (_HEIGHT - _TOP - _BOTTOM)


def _frame(x_name: str, y_name: str) -> Iterator[str]:
    """Yield grid and axes of the unit square."""
    for tick in (0, 0.2, 0.4, 0.6, 0.8, 1):
        x, y = _x(tick), _y(tick)
        yield f'<line x1="{x}" y1="{_y(0)}" x2="{x}" y2="{_y(1)}" stroke="#e6e9ef"/>'
        yield f'<line x1="{_x(0)}" y1="{y}" x2="{_x(1)}" y2="{y}" stroke="#e6e9ef"/>'
        yield f'<text x="{x}" y="{_y(0) + 18}" text-anchor="middle">{tick:g}</text>'
        yield f'<text x="{_x(0) - 8}" y="{y + 5}" text-anchor="end">{tick:g}</text>'
    yield f'<text x="{_x(0.5)}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(x_name)}</text>'
    yield (
        f'<text transform="translate(14 {_y(0.5)}) rotate(-90)" text-anchor="middle">{escape(y_name)}</text>'
    )


def _svg(parts: Sequence[str], width: int, height: int, title: str) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}" '
        f'xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'
    )
