"""The AP of several methods over the steps, as an SVG that needs nothing beside itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape

from lgd.analyse.plots import PALETTE

_WIDTH, _HEIGHT = 560, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 130, 30, 44
_LINES = 5


def draw_curves(curves: Mapping[str, Sequence[tuple[int, float]]], title: str) -> str:
    """Draw a line for each method through its points (step, AP)."""
    points = [point for curve in curves.values() for point in curve]
    last = max((step for step, _ in points), default=1)
    low, high = _bounds([ap for _, ap in points])

    def place(step: float, ap: float) -> tuple[float, float]:
        x = _LEFT + (_WIDTH - _LEFT - _RIGHT) * step / last
        return x, _TOP + (_HEIGHT - _TOP - _BOTTOM) * (high - ap) / (high - low)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        'font-family="DejaVu Sans, sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>',
        f'<text x="{_LEFT}" y="18" font-weight="bold">{escape(title)}</text>',
    ]
    for number in range(_LINES + 1):
        ap = low + (high - low) * number / _LINES
        x, y = place(0, ap)
        parts.append(f'<path d="M{x} {y:.1f}H{_WIDTH - _RIGHT}" stroke="#e3e7ee"/>')
        parts.append(f'<text x="{x - 8}" y="{y + 4:.1f}" text-anchor="end">{ap:.0f}</text>')
        x, y = place(last * number / _LINES, low)
        parts.append(
            f'<text x="{x:.1f}" y="{y + 18}" text-anchor="middle">{last * number / _LINES:.0f}</text>'
        )
    parts.append(f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 8}" text-anchor="end">steps; AP upwards</text>')
    for number, (name, curve) in enumerate(curves.items()):
        color = PALETTE[number % len(PALETTE)]
        parts += _line([place(*point) for point in curve], color)
        y = _TOP + 12 + 18 * number
        parts.append(f'<path d="M{_WIDTH - _RIGHT + 10} {y - 4}h16" stroke="{color}" stroke-width="3"/>')
        parts.append(f'<text x="{_WIDTH - _RIGHT + 32}" y="{y}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _line(points: Sequence[tuple[float, float]], color: str) -> Iterator[str]:
    joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    yield f'<polyline points="{joined}" fill="none" stroke="{color}" stroke-width="2"/>'
    for x, y in points:
        yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{color}"/>'


def _bounds(values: Sequence[float]) -> tuple[float, float]:
    """Round numbers about the values, with a multiple of `_LINES` between them."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    start = _LINES * (low // _LINES)
    rise = _LINES * max(1, -int(-(high - start) // _LINES))
    return start, start + rise
