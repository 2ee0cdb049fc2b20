"""What a run has left in its OUTPUT_DIR, read however broken it is."""

from __future__ import annotations

import json
import os
import re
import socket
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import yaml

FILES = ("metrics.jsonl", "history.jsonl", "config.yaml", "log.txt")
"""What makes a folder a run."""

TAIL_BYTES = 2**16
_LONGEST_TAIL = 2**24
_LARGEST_SETTINGS = 2**20
_LARGEST_NUMBER = 1e15
"""Beyond, a number in a file is damage: no run has so many steps or seconds."""

_NONE = re.compile(r"(?!)")
_JOB_IDS = {
    "slurm": re.compile(r"[0-9]{1,12}(_[0-9]{1,9})?"),
    "torchx": re.compile(r"[a-z_]+://[\w.:/@-]{1,300}"),
    "kubernetes": re.compile(r"[a-z]+/[a-z0-9][a-z0-9.-]{0,252}"),
    "local": re.compile(r"[0-9]{1,9}"),
}
"""What the ids look like: they become arguments of the schedulers' programs, and a file may hold anything."""

FUTURE_SECONDS = 300.0
"""By how much the clock of a file server may be ahead."""


def read_lines(path: Path, num_bytes: int = TAIL_BYTES) -> list[dict[str, Any]]:
    """The JSON objects in the last bytes of a file, a line each; broken and half lines are left out."""
    lines = _read_end(path, num_bytes)
    entries = [_parse_json(line) for line in lines]
    return [entry for entry in entries if isinstance(entry, dict)]


def last_training_line(path: Path) -> dict[str, Any]:
    """The last whole line of a log period, searched from the end; empty without one."""
    size = TAIL_BYTES
    while True:
        entries = [entry for entry in read_lines(path, size) if "total_loss" in entry]
        if entries:
            return entries[-1]
        try:
            if size >= path.stat().st_size or size >= _LONGEST_TAIL:
                return {}
        except OSError:
            return {}
        size *= 8  # the lines of an evaluation are long


def read_settings(path: Path) -> dict[str, Any]:
    """The settings of a run as plain values; empty where they cannot be read."""
    try:
        text = _read_whole(path, _LARGEST_SETTINGS)
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        # Both are safe; merges, which can grow without bound, no run writes.
        content = None if b"<<" in text else yaml.load(text, Loader=loader)
    except (OSError, yaml.YAMLError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def read_aps(path: Path) -> tuple[float | None, float | None]:
    """Box AP of student and teacher on the first test set."""
    try:
        results = _parse_json(_read_whole(path, _LONGEST_TAIL))
        models = next(iter(results.values()))
    except (OSError, AttributeError, StopIteration):
        return None, None
    return number(get(models, "student", "bbox", "AP")), number(get(models, "teacher", "bbox", "AP"))


def get(tree: Any, *keys: str) -> Any:
    """A value deep in nested dictionaries; None where there is none."""
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def number(value: Any) -> float | None:
    """A finite number that could be one of a run's; None for anything else."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    # A whole number may be larger than any that `math` takes.
    return float(value) if is_number and abs(value) < _LARGEST_NUMBER else None


def whole(value: Any) -> int | None:
    """Likewise a count."""
    return value if isinstance(value, int) and number(value) is not None and value >= 0 else None


def modified(path: Path, now: float) -> float | None:
    """When a file was last written; None without it, and where that would be in the future."""
    try:
        time = path.stat().st_mtime
    except OSError:
        return None
    return time if time <= now + FUTURE_SECONDS else None


@dataclass(frozen=True)
class Start:
    """A start of a training, as rank 0 wrote it down.

    Attributes:
        host: of rank 0.
        process_id: of rank 0; 0 where it is not known.
        began: when that process began, see `lgd.run.job.process_start`; "" where it is not known.
        job: "KIND ID" of the scheduler's job, "" without one.
        step: steps done by then.
    """

    host: str
    process_id: int
    began: str
    job: str
    step: int | None

    @classmethod
    def read(cls, entry: Mapping[str, Any]) -> Start:
        """Read a line of history.jsonl, whatever it holds."""
        found = whole(entry.get("pid")) or 0
        texts = {key: value for key, value in entry.items() if isinstance(value, str)}
        return cls(
            host=texts.get("host", ""),
            process_id=found if found < 2**31 else 0,
            began=texts.get("began", ""),
            job=" ".join(texts.get("job", "").split()),
            step=whole(entry.get("step")),
        )

    @property
    def is_here(self) -> bool:
        """Whether it was on this host."""
        return self.host == socket.gethostname()

    def runs(self) -> bool:
        """Whether its process, and not a later one of the same number, runs on this host."""
        from lgd.run.job import process_start

        began = process_start(self.process_id) if self.process_id else ""
        return self.is_here and began != "" and self.began in ("", began)

    @property
    def kind(self) -> str:
        """What the job is of: "slurm", "torchx", "kubernetes", "local" (submitit here), or ""."""
        return self.job.partition(" ")[0]

    @property
    def job_id(self) -> str:
        """What the scheduler calls the job, "" without one or where it is nothing that one would say."""
        found = self.job.partition(" ")[2]
        return found if _JOB_IDS.get(self.kind, _NONE).fullmatch(found) else ""


def find_start(folder: Path) -> Start:
    """The newest start of the training in an OUTPUT_DIR.

    Raises:
        ValueError: there is no run.
    """
    start = last_start(read_history(folder))
    if start is None:
        what = "no run has started there" if folder.is_dir() else "no such folder"
        raise ValueError(f"{folder}: {what}; a job that waits for its first turn is known to its queue alone")
    return start


def read_history(folder: Path) -> list[dict[str, Any]]:
    """The starts and ends of the training in an OUTPUT_DIR."""
    return [entry for entry in read_lines(folder / "history.jsonl") if isinstance(entry.get("event"), str)]


def last_start(history: list[dict[str, Any]]) -> Start | None:
    """The newest start in a history; None without one."""
    starts = [entry for entry in history if entry["event"] == "start"]
    return Start.read(starts[-1]) if starts else None


def _parse_json(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _read_end(path: Path, num_bytes: int) -> list[bytes]:
    try:
        with _open(path) as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - num_bytes))
            lines = file.read(num_bytes).split(b"\n")
    except OSError:
        return []
    return lines[1:] if end > num_bytes else lines


def _read_whole(path: Path, num_bytes: int) -> bytes:
    with _open(path) as file:
        return file.read(num_bytes)


def _open(path: Path) -> BinaryIO:
    """Open a file, but nothing that would keep a reader waiting or reading for ever: no pipe, no device."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(f"{path} is no file")
    return os.fdopen(handle, "rb")
