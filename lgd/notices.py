"""Notices of long work: a bar with speed and time left on a terminal, a line now and then in a log.

Bars go to stderr, and only where that is a terminal; lines go to the log. What takes less than a second says
nothing. With `--json` lines take the place of bars, and are events too.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, TextIO, TypeVar

from lgd.events import event, sends_events

logger = logging.getLogger(__name__)

_SECONDS = 10.0
"""Between two lines in a log."""

_DELAY = 1.0
"""Seconds until a bar appears."""

_COLUMNS = 80
"""Of a terminal that does not say its width."""

_NUMBERS = 52
"""Columns for what stands behind a bar's name: numbers, speed, time left."""

T = TypeVar("T")


@contextmanager
def long_work(
    what: str, total: int | None = None, unit: str = "images", *, shown: bool = True
) -> Iterator[Callable[[int], None]]:
    """Give notice of work that has steps.

    Args:
        what: is done, as the notice begins.
        total: steps there are; None where nobody knows, and then no time left is said.
        unit: what a step is called, in the plural.
        shown: False says nothing, as on ranks other than the first.

    Yields:
        What to call with the number of steps done since the last call. More than `total` are not counted.
    """
    if not shown:
        yield lambda count: None
    elif _writes_lines():
        yield _Lines(what, total, unit).advance
    else:
        with _make_bar(what, total, unit) as bar:
            yield lambda count: bar.update(count if total is None else min(count, total - bar.n))


def follow(
    items: Iterable[T],
    what: str,
    total: int | None = None,
    unit: str = "images",
    *,
    count: Callable[[T], int] = lambda item: 1,
    shown: bool = True,
) -> Iterator[T]:
    """Go through `items` and give notice of it; other arguments as of `long_work`.

    Args:
        items: to go through.
        what: see `long_work`.
        total: see `long_work`.
        unit: see `long_work`.
        count: the steps that an item stands for, which are done when the next one is asked for.
        shown: see `long_work`.
    """
    with long_work(what, total, unit, shown=shown) as advance:
        for item in items:
            yield item
            advance(count(item))


@contextmanager
def waiting(what: str, expected: float | None = None, *, shown: bool = True) -> Iterator[None]:
    """Give notice of work that has no steps: how long it takes, and what is left of that.

    Args:
        what: is waited for.
        expected: seconds that it may take, if that is known; where they were too few, one seems to be left.
        shown: see `long_work`.
    """
    if not shown:
        yield
        return
    total, over = None if expected is None else max(1, round(expected)), threading.Event()
    with _make_clock(what, total) as tick:
        clock = threading.Thread(target=_run_clock, args=(tick, over), daemon=True)
        clock.start()
        try:
            yield
        finally:
            over.set()
            clock.join()


def above_bars(stream: TextIO) -> AbstractContextManager[None]:
    """Write whole lines to `stream` within this: a bar on the same terminal makes room for them."""
    tqdm = sys.modules.get("tqdm")
    if tqdm is None:
        return nullcontext()
    context: AbstractContextManager[None] = tqdm.tqdm.external_write_mode(stream)
    return context


@contextmanager
def lines_on_stderr() -> Iterator[None]:
    """Send the lines of notices to stderr: for programs that keep no log."""
    handler, level = logging.StreamHandler(), logger.level
    handler.setFormatter(logging.Formatter("[%(asctime)s] %(message)s", "%H:%M:%S"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def _writes_lines() -> bool:
    return sends_events() or not sys.stderr.isatty()


def _make_bar(what: str, total: int | None, unit: str) -> Any:  # tqdm has no types
    from tqdm import tqdm

    class Bar(tqdm):  # type: ignore[misc]
        monitor_interval = 0  # no thread beside ours, in which workers would be forked

    done, of_all = f"{{n_fmt}} {unit}, {{rate_noinv_fmt}}", "{n_fmt}/{total_fmt}, {rate_noinv_fmt}"
    if unit == "s":
        done = of_all = "{elapsed}"
    known = f"{{desc}}: {{percentage:3.0f}}%|{{bar}}| {of_all}, ETA {{remaining}}"
    columns = _columns()
    return Bar(
        total=total,
        desc=_shorten(what, max(24, (columns or _COLUMNS) - _NUMBERS)),
        unit=f" {unit}",
        bar_format=f"{{desc}}: {done}" if total is None else known,
        file=sys.stderr,
        smoothing=0.1,
        leave=False,
        delay=_DELAY,
        **({"dynamic_ncols": True} if columns else {"ncols": _COLUMNS, "nrows": 24}),
    )


def _columns() -> int:
    """The terminal's width; 0 where it says none, as in many containers."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError):
        return 0


def _shorten(what: str, most: int) -> str:
    """Leave out of the middle what is too long: paths begin alike."""
    head = most // 2
    return what if len(what) <= most else f"{what[:head]}...{what[head + 3 - most :]}"


@contextmanager
def _make_clock(what: str, total: int | None) -> Iterator[Callable[[], object]]:
    """Yield what to call every second."""
    if _writes_lines():
        yield partial(_Lines(what, total, "s").advance, 1)
        return
    with _make_bar(what, total, "s") as bar:
        yield lambda: bar.update(total is None or bar.n < total - 1) or bar.refresh()


def _run_clock(tick: Callable[[], object], over: threading.Event) -> None:
    while not over.wait(1.0):
        tick()


class _Lines:
    """A line in the log every few seconds."""

    def __init__(self, what: str, total: int | None, unit: str) -> None:
        self._what, self._total, self._unit = what, total, unit
        self._done = 0
        self._started = self._said = time.monotonic()

    def advance(self, count: int) -> None:
        """Count steps, one or more."""
        self._done += count
        now = time.monotonic()
        if now - self._said < _SECONDS or self._done == self._total:
            return
        self._said = now
        facts = event("progress", what=self._what, done=self._done, total=self._total, unit=self._unit)
        logger.info("%s: %s", self._what, self._describe(now - self._started), extra=facts)

    def _describe(self, seconds: float) -> str:
        speed = self._done / seconds
        left = self._total is not None and f", ETA {_clock(max(0, self._total - self._done) / speed)}"
        if self._unit == "s":
            return _clock(seconds) + (left or "")
        done = f"{self._done}" if self._total is None else f"{min(self._done, self._total)} of {self._total}"
        return f"{done} {self._unit}, {speed:.3g} {self._unit}/s{left or ''}"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
