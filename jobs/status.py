"""A table of runs: `python -m jobs.status OUTPUT_DIR... [--watch SECONDS] [--json]`.

Reads what trainings leave in their OUTPUT_DIR: the last lines of metrics.jsonl, config.yaml, results.json and
history.jsonl. A file that is half-written or broken counts as far as it can be read.
"""

from __future__ import annotations

import argparse
import glob
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jobs.console import guarded
from jobs.records import (
    FILES,
    Start,
    get,
    last_start,
    last_training_line,
    modified,
    number,
    read_aps,
    read_history,
    read_settings,
    whole,
)
from jobs.text import on_one_line
from lgd.files import typed_path

_COLUMNS = [
    "run", "state", "step", "phase", "ETA", "AP", "teacher", "s/step", "last line", "restarts", "job",
]  # fmt: skip
_DEPTH = 6
_QUIET_PERIODS = 5
"""A run that was silent for so many log periods has stalled, if --stalled-after has passed too."""

_LONGEST_MESSAGE = 500
_LONGEST_WAIT = 1e7


@dataclass(frozen=True)
class RunStatus:
    """Where a run stands. What is not known is None.

    Attributes:
        run: its folder.
        state: "running", "stalled", "finished", "failed", "saved-75", "not started" or "unreadable".
        step: steps done.
        max_step: steps to do.
        phase: "freeze", "distill", "freeze+distill" or "train".
        eta_seconds: to the end, as the trainer last said; None where it is not running.
        student_ap: box AP of the last evaluation on the first test set, percent.
        teacher_ap: likewise.
        seconds_per_step: in the last log period.
        age_seconds: since something was last written.
        restarts: how often it was started again.
        job: the scheduler's job of its last start, such as "slurm 4711".
        message: why it failed, or what it said when it left.
    """

    run: str
    state: str
    step: int | None = None
    max_step: int | None = None
    phase: str | None = None
    eta_seconds: float | None = None
    student_ap: float | None = None
    teacher_ap: float | None = None
    seconds_per_step: float | None = None
    age_seconds: float | None = None
    restarts: int | None = None
    job: str | None = None
    message: str | None = None


def find_runs(places: Sequence[str | Path]) -> list[Path]:
    """Find the runs meant by folders, folders above runs, and patterns such as "outputs/*_lgd".

    A folder without any run in it, or that is not there, is a run that has not started.

    Raises:
        ValueError: a pattern fits nothing.
    """
    runs: dict[Path, None] = {}
    for place in map(str, places):
        folders = [place]
        if glob.has_magic(place) and not Path(place).exists():
            folders = sorted(name for name in glob.glob(place) if Path(name).is_dir())  # noqa: PTH207
            if not folders:
                raise ValueError(f"{place}: no folder fits the pattern")
        for folder in folders:
            runs |= dict.fromkeys(sorted(_runs_below(Path(folder), _DEPTH, set())) or [Path(folder)])
    return list(runs)


def _runs_below(folder: Path, depth: int, seen: set[tuple[int, int]]) -> Iterator[Path]:
    """Yield the folder if it is a run, else the runs below it; what a run has set aside is none.

    Links are followed, but to no folder twice: they may lead in a ring.
    """
    try:
        found = folder.stat()
        entries = list(os.scandir(folder))
    except OSError:
        return
    if (found.st_dev, found.st_ino) in seen:
        return
    seen.add((found.st_dev, found.st_ino))
    if any(entry.name in FILES for entry in entries):
        yield folder
    elif depth:
        for entry in entries:
            yield from _runs_below(folder / entry.name, depth - 1, seen)


def read_run(folder: Path, now: float, stalled_after: float = 600.0) -> RunStatus:
    """Read where a run stands.

    Args:
        folder: its OUTPUT_DIR.
        now: seconds since 1970.
        stalled_after: seconds of silence after which a run that has not ended is called stalled.
    """
    try:
        return _read_run(folder, now, stalled_after)
    except Exception as error:  # whatever one run's files make of it, the others shall be shown
        said = f"cannot be read: {type(error).__name__}: {error}"
        return RunStatus(str(folder), "unreadable", message=_shorten(said))


def _read_run(folder: Path, now: float, stalled_after: float) -> RunStatus:
    times = [time for name in FILES[:2] + FILES[3:] if (time := modified(folder / name, now)) is not None]
    history = read_history(folder)
    start, entry = last_start(history), history[-1] if history else {}
    last = last_training_line(folder / "metrics.jsonl")
    settings = read_settings(folder / "config.yaml")
    step, max_step = whole(last.get("iteration")), whole(get(settings, "SOLVER", "MAX_ITER"))
    seconds, age = number(last.get("time")), max(0.0, now - max(times)) if times else None
    period = number(settings.get("LOG_PERIOD")) or 0.0
    patience = max(stalled_after, _QUIET_PERIODS * period * (seconds or 0.0))
    is_complete = step is not None and step == max_step and (folder / "model_final.pth").exists()
    state = decide_state(entry, age, patience, start=start, is_complete=is_complete)
    if state == "not started" and any((folder / name).exists() for name in FILES):
        state = "stalled"  # nothing is known of when it wrote last
    starts = sum(entry["event"] == "start" for entry in history)
    student, teacher = read_aps(folder / "results.json")
    message = entry.get("message")
    if state == "failed" and not message:
        message = f"process {start.process_id if start else '?'} ended without a word: killed?"
    elif age is None and state == "stalled":
        message = "its files are dated in the future, so nobody can tell whether it runs: look at the clocks"
    phase = last.get("phase")
    return RunStatus(
        run=str(folder),
        state=state,
        step=step if step is not None else start.step if start else None,
        max_step=max_step,
        phase=_shorten(phase)[:20] if isinstance(phase, str) else None,
        eta_seconds=number(last.get("eta_seconds")) if state == "running" else None,
        student_ap=student,
        teacher_ap=teacher,
        seconds_per_step=seconds,
        age_seconds=age,
        restarts=starts - 1 if starts else None,
        job=start.job[:100] if start and start.job else None,
        message=_shorten(str(message)) if message else None,
    )


def _shorten(text: str) -> str:
    return on_one_line(" ".join(text.split()))[:_LONGEST_MESSAGE]


def decide_state(
    entry: Mapping[str, Any],
    age: float | None,
    patience: float,
    *,
    start: Start | None = None,
    is_complete: bool = False,
) -> str:
    """Tell a run's state.

    Args:
        entry: the last line of its history, empty without one.
        age: seconds since it last wrote anything, None where it never did.
        patience: seconds after which silence means that it has stalled.
        start: its last start, None without one.
        is_complete: whether all steps are done and the final model is there.
    """
    ends = {"finished": "finished", "saved": "saved-75", "failed": "failed"}
    if entry.get("event") == "end":
        return ends.get(str(entry.get("outcome")), "failed")
    if not entry and is_complete:
        return "finished"
    if start is not None and start.is_here and not start.runs():
        return "failed"  # killed: it could not write its end
    if age is None:
        return "running" if start is not None and start.is_here else "not started"
    return "running" if age <= patience else "stalled"


def format_table(statuses: Sequence[RunStatus]) -> str:
    """Lay out runs as text: a row each, then what those that did not end well have said."""
    rows = [
        ["run", "state", "step", "phase", "ETA", "AP", "teacher", "s/step", "last line", "restarts", "job"]
    ]
    for status in statuses:
        step = "-" if status.step is None else f"{status.step}/{status.max_step or '?'}"
        rows.append([
            on_one_line(status.run), status.state, step, status.phase or "-", _duration(status.eta_seconds),
            _decimals(status.student_ap, 2), _decimals(status.teacher_ap, 2),
            _decimals(status.seconds_per_step, 3), _duration(status.age_seconds),
            "-" if status.restarts is None else str(status.restarts), on_one_line(status.job or "-"),
        ])  # fmt: skip
    widths = [max(len(row[c]) for row in rows) for c in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if c in (0, 1, 3, 10) else cell.rjust(width)
            for c, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    lines += [f"{on_one_line(status.run)}: {status.message}" for status in statuses if status.message]
    return "\n".join(lines)


def _decimals(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return (f"{days}d " if days else "") + f"{hour}:{minute:02}:{second:02}"


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m jobs.status", description="Show where trainings stand.")
    parser.add_argument(
        "places",
        nargs="+",
        type=typed_path,
        metavar="OUTPUT_DIR",
        help="of a run, above many, or a pattern",
    )
    parser.add_argument("--watch", type=float, metavar="SECONDS", help="again and again, until Ctrl-C")
    parser.add_argument("--json", action="store_true", help="a JSON list in place of the table")
    parser.add_argument(
        "--stalled-after", type=float, default=10.0, metavar="MINUTES",
        help="of silence; long evaluations are silent too",
    )  # fmt: skip
    arguments = parser.parse_args(argv)
    if arguments.watch is not None and not 0 < arguments.watch < _LONGEST_WAIT:
        parser.error(f"--watch must be above 0, not {arguments.watch:g}")
    if not arguments.stalled_after >= 0:
        parser.error(f"--stalled-after must be 0 or more, not {arguments.stalled_after:g}")
    return arguments


def show(arguments: argparse.Namespace) -> int:
    """Print the table, once or again and again; returns the exit code."""
    while True:
        now = time.time()
        runs = find_runs(arguments.places)
        statuses = [read_run(run, now, 60 * arguments.stalled_after) for run in runs]
        text = (
            json.dumps([asdict(status) for status in statuses]) if arguments.json else format_table(statuses)
        )
        clear = "\x1b[H\x1b[2J" if arguments.watch and sys.stdout.isatty() else ""
        sys.stdout.write(f"{clear}{text}\n")
        sys.stdout.flush()
        if arguments.watch is None:
            return 0
        try:
            time.sleep(arguments.watch)
        except KeyboardInterrupt:  # how it is meant to end
            return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, or 2 for wrong arguments."""
    arguments = parse_arguments(argv)
    return guarded(lambda: show(arguments))


if __name__ == "__main__":
    sys.exit(main())
