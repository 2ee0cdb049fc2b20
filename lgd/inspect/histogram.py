"""Numbers as text: quantiles in a line, and bars that a person can read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from lgd.data.index import Floats, Integers

BAR_WIDTH = 40

QUANTILES = {"least": 0.0, "p10": 0.1, "median": 0.5, "p90": 0.9, "most": 1.0}


def quantiles(values: Floats | Integers) -> dict[str, float]:
    """Least, 10 %, median, 90 % and most of some numbers, all of which are among them; {} of none."""
    if len(values) == 0:
        return {}
    found = np.quantile(values, list(QUANTILES.values()), method="nearest")
    return {name: round(value, 2) for name, value in zip(QUANTILES, found.tolist(), strict=True)}


def say_quantiles(values: Floats | Integers) -> str:
    """The same as a phrase: "1 to 30, median 13, 80 % within 5 and 22"."""
    found = {name: f"{value:.0f}" for name, value in quantiles(values).items()}
    if not found:
        return "none"
    if found["least"] == found["most"]:
        return f"all {found['least']}"
    return (
        f"{found['least']} to {found['most']}, median {found['median']}, "
        f"80 % within {found['p10']} and {found['p90']}"
    )


def octaves(values: Floats | Integers) -> list[tuple[int, int, int]]:
    """Count numbers between powers of two.

    Returns:
        From the first interval that holds any to the last: lower end, upper end (not included), count. What
        is below 1 counts as 1.
    """
    if len(values) == 0:
        return []
    exponents = np.floor(np.log2(np.maximum(values, 1))).astype(np.int64)
    first = int(exponents.min())
    counts = np.bincount(exponents - first).tolist()
    return [(2 ** (first + k), 2 ** (first + k + 1), count) for k, count in enumerate(counts)]


def bars(rows: Sequence[tuple[str, int]]) -> Iterator[str]:
    """Yield a line a row: its name, its count, its share, and a bar as long as the share of the largest."""
    total = sum(count for _, count in rows)
    largest = max((count for _, count in rows), default=0)
    width = max((len(name) for name, _ in rows), default=0)
    digits = len(str(largest))
    for name, count in rows:
        bar = "#" * (-(-BAR_WIDTH * count // largest) if largest else 0)
        share = 100 * count / total if total else 0
        yield f"{name:>{width}}  {count:>{digits}} {share:5.1f} %  {bar}".rstrip()
