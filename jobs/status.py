"""A table of runs: `python -m jobs.status OUTPUT_DIR... [--watch SECONDS] [--json]`.

Reads what trainings leave in their OUTPUT_DIR: the last lines of metrics.jsonl, config.yaml, results.json and
history.jsonl. A file that is half-written or broken counts as far as it can be read.
"""

from __future__ import annotations

import argparse
import glob
import json
import math
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

FILES = ("metrics.jsonl", "history.jsonl", "config.yaml", "log.txt")
"""What makes a folder a run."""

_TAIL_BYTES = 2**16
_LONGEST_TAIL = 2**24
_DEPTH = 6
_QUIET_PERIODS = 5
"""A run that was silent for so many log periods has stalled, if --stalled-after has passed too."""


@dataclass(frozen=True)
class RunStatus:
    """Where a run stands. What is not known is None.

    Attributes:
        run: its folder.
        state: "running", "stalled", "finished", "failed", "saved-75" or "not started".
        step: steps done.
        max_step: steps to do.
        phase: "freeze", "distill", "freeze+distill" or "train".
        eta_seconds: to the end, as the trainer last said; None where it is not running.
        student_ap: box AP of the last evaluation on the first test set, percent.
        teacher_ap: likewise.
        seconds_per_step: in the last log period.
        age_seconds: since something was last written.
        restarts: how often it was started again.
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
    message: str | None = None


def find_runs(places: Sequence[str]) -> list[Path]:
    """Find the runs meant by folders, folders above runs, and patterns such as "outputs/*_lgd".

    A folder without any run in it, or that is not there, is a run that has not started.

    Raises:
        ValueError: a pattern fits nothing.
    """
    runs: dict[Path, None] = {}
    for place in places:
        folders = [place]
        if glob.has_magic(place) and not Path(place).exists():
            folders = sorted(name for name in glob.glob(place) if Path(name).is_dir())  # noqa: PTH207
            if not folders:
                raise ValueError(f"{place}: no folder fits the pattern")
        for folder in folders:
            runs |= dict.fromkeys(sorted(_runs_below(Path(folder), _DEPTH)) or [Path(folder)])
    return list(runs)


def _runs_below(folder: Path, depth: int) -> Iterator[Path]:
    """Yield the folder if it is a run, else the runs below it; what a run has set aside is none."""
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return
    if any(entry.name in FILES for entry in entries):
        yield folder
    elif depth:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and entry.is_dir()):
                yield from _runs_below(folder / entry.name, depth - 1)


def read_run(folder: Path, now: float, stalled_after: float = 600.0) -> RunStatus:
    """Read where a run stands.

    Args:
        folder: its OUTPUT_DIR.
        now: seconds since 1970.
        stalled_after: seconds of silence after which a run that has not ended is called stalled.
    """
    ages = [now - modified for name in FILES[:2] + FILES[3:] if (modified := _modified(folder / name))]
    history = [entry for entry in _read_lines(folder / "history.jsonl") if "event" in entry]
    last = _last_training_line(folder / "metrics.jsonl")
    settings = _read_settings(folder / "config.yaml")
    step, max_step = _whole(last.get("iteration")), _whole(_get(settings, "SOLVER", "MAX_ITER"))
    age = max(0.0, min(ages)) if ages else None
    seconds = _number(last.get("time"))
    period = _number(settings.get("LOG_PERIOD")) or 0.0
    patience = max(stalled_after, _QUIET_PERIODS * period * (seconds or 0.0))
    is_complete = step is not None and step == max_step and (folder / "model_final.pth").exists()
    state = decide_state(history[-1] if history else {}, age, patience, is_complete=is_complete)
    starts = sum(entry["event"] == "start" for entry in history)
    student, teacher = _read_aps(folder / "results.json")
    message = history[-1].get("message") if history else None
    if state == "failed" and not message:
        message = f"process {history[-1].get('pid')} ended without a word: killed?"
    return RunStatus(
        run=str(folder),
        state=state,
        step=step if step is not None else _whole(history[-1].get("step")) if history else None,
        max_step=max_step,
        phase=str(last["phase"]) if "phase" in last else None,
        eta_seconds=_number(last.get("eta_seconds")) if state == "running" else None,
        student_ap=student,
        teacher_ap=teacher,
        seconds_per_step=seconds,
        age_seconds=age,
        restarts=starts - 1 if starts else None,
        message=str(message) if message else None,
    )


def decide_state(
    entry: Mapping[str, Any], age: float | None, patience: float, *, is_complete: bool = False
) -> str:
    """Tell a run's state.

    Args:
        entry: the last line of its history, empty without one.
        age: seconds since it last wrote anything, None where it never did.
        patience: seconds after which silence means that it has stalled.
        is_complete: whether all steps are done and the final model is there.
    """
    ends = {"finished": "finished", "saved": "saved-75", "failed": "failed"}
    if entry.get("event") == "end":
        return ends.get(str(entry.get("outcome")), "failed")
    if age is None:
        return "not started"
    if not entry and is_complete:
        return "finished"
    if entry.get("host") == socket.gethostname() and not _is_alive(entry.get("pid")):
        return "failed"  # killed: it could not write its end
    return "running" if age <= patience else "stalled"


def _is_alive(pid: Any) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError, TypeError):
        return False
    except PermissionError:
        return True
    return True


def _last_training_line(path: Path) -> dict[str, Any]:
    """The last whole line of a log period, searched from the end; empty without one."""
    size = _TAIL_BYTES
    while True:
        entries = [entry for entry in _read_lines(path, size) if "total_loss" in entry]
        if entries:
            return entries[-1]
        try:
            if size >= path.stat().st_size or size >= _LONGEST_TAIL:
                return {}
        except OSError:
            return {}
        size *= 8  # the lines of an evaluation are long


def _read_lines(path: Path, num_bytes: int = _TAIL_BYTES) -> list[dict[str, Any]]:
    """The JSON objects in the last bytes of a file, a line each; broken and half lines are left out."""
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - num_bytes))
            lines = file.read().split(b"\n")
    except OSError:
        return []
    entries: list[dict[str, Any]] = []
    for line in lines[1:] if end > num_bytes else lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict):
            entries.append(entry)
    return entries


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        content = yaml.load(path.read_bytes(), Loader=loader)  # both are safe
    except (OSError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def _read_aps(path: Path) -> tuple[float | None, float | None]:
    """Box AP of student and teacher on the first test set."""
    try:
        results = json.loads(path.read_bytes())
        models = next(iter(results.values()))
    except (OSError, ValueError, AttributeError, StopIteration):
        return None, None
    return _number(_get(models, "student", "bbox", "AP")), _number(_get(models, "teacher", "bbox", "AP"))


def _get(tree: Any, *keys: str) -> Any:
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def _number(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else None


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _modified(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def format_table(statuses: Sequence[RunStatus]) -> str:
    """Lay out runs as text: a row each, then what those that did not end well have said."""
    rows = [["run", "state", "step", "phase", "ETA", "AP", "teacher", "s/step", "last line", "restarts"]]
    for status in statuses:
        step = "-" if status.step is None else f"{status.step}/{status.max_step or '?'}"
        rows.append([
            status.run, status.state, step, status.phase or "-", _duration(status.eta_seconds),
            _decimals(status.student_ap, 2), _decimals(status.teacher_ap, 2),
            _decimals(status.seconds_per_step, 3), _duration(status.age_seconds),
            "-" if status.restarts is None else str(status.restarts),
        ])  # fmt: skip
    widths = [max(len(row[c]) for row in rows) for c in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if c in (0, 1, 3) else cell.rjust(width)
            for c, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    lines += [f"{status.run}: {status.message}" for status in statuses if status.message]
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
    parser.add_argument("places", nargs="+", metavar="OUTPUT_DIR", help="of a run, above many, or a pattern")
    parser.add_argument("--watch", type=float, metavar="SECONDS", help="again and again, until Ctrl-C")
    parser.add_argument("--json", action="store_true", help="a JSON list in place of the table")
    parser.add_argument(
        "--stalled-after", type=float, default=10.0, metavar="MINUTES",
        help="of silence; long evaluations are silent too",
    )  # fmt: skip
    arguments = parser.parse_args(argv)
    if arguments.watch is not None and arguments.watch <= 0:
        parser.error(f"--watch must be above 0, not {arguments.watch:g}")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, or 2 for wrong arguments."""
    arguments = parse_arguments(argv)
    try:
        while True:
            now = time.time()
            statuses = [
                read_run(run, now, 60 * arguments.stalled_after) for run in find_runs(arguments.places)
            ]
            text = (
                json.dumps([asdict(status) for status in statuses])
                if arguments.json
                else format_table(statuses)
            )
            clear = "\x1b[H\x1b[2J" if arguments.watch and sys.stdout.isatty() else ""
            sys.stdout.write(f"{clear}{text}\n")
            sys.stdout.flush()
            if arguments.watch is None:
                return 0
            time.sleep(arguments.watch)
    except ValueError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    sys.exit(main())
