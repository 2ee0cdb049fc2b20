"""The output folder of a run: what lies where, the log, and what becomes of an earlier run."""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import stat
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from lgd.files import GrowingFile, clear_leftovers
from lgd.ranks.interruption import Interrupted
from lgd.run.job import process_start, scheduler_job

logger = logging.getLogger(__name__)

_FOLDERS = ("checkpoints", "inference", "teacher", "ema", "trackers")
_FILES = (
    "config.yaml", "log.txt", "metrics.jsonl", "results.json", "history.jsonl", "model_best.pth",
    "model_final.pth",
)  # fmt: skip


class FolderLostError(RuntimeError):
    """OUTPUT_DIR went away while the run wrote there."""


@dataclass(frozen=True)
class OutputFolder:
    """Where a run writes.

    Attributes:
        root: OUTPUT_DIR.
    """

    root: Path

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints to resume from."""
        return self.root / "checkpoints"

    @property
    def config(self) -> Path:
        """The whole configuration of the run, ready for --config-file."""
        return self.root / "config.yaml"

    @property
    def history(self) -> Path:
        """When the training was started, and how it ended."""
        return self.root / "history.jsonl"

    @property
    def results(self) -> Path:
        """AP and AR of the last evaluation."""
        return self.root / "results.json"

    @property
    def best_model(self) -> Path:
        """Weights that were best on the first test set, by TEST.BEST_METRIC."""
        return self.root / "model_best.pth"

    @property
    def final_model(self) -> Path:
        """Weights at the end."""
        return self.root / "model_final.pth"

    def predictions(self, dataset: str, model: str) -> Path:
        """Detections of the last evaluation on `dataset`, in COCO's results format."""
        folder = re.sub(r"[^\w.-]+", "_", dataset).strip("_.")
        name = "predictions.json" if model == "student" else f"predictions_{model}.json"
        return self.root / "inference" / folder / name

    def find_misplaced(self) -> list[str]:
        """The names of what is in the place of a folder or of a file that a run writes, and is none."""
        is_right = {**dict.fromkeys(_FOLDERS, stat.S_ISDIR), **dict.fromkeys(_FILES, stat.S_ISREG)}
        found = {name: _mode(self.root / name) for name in is_right}
        return [name for name, mode in found.items() if mode is not None and not is_right[name](mode)]

    def clear_leftovers(self) -> None:
        """Remove what killed runs left half-written; only for who holds the folder."""
        for folder in (self.root, self.checkpoints, *self.root.glob("inference/*")):
            clear_leftovers(folder)


def _mode(path: Path) -> int | None:
    """What kind of thing there is; None for nothing, 0 for a link that leads nowhere or in a ring."""
    try:
        return path.stat().st_mode
    except FileNotFoundError:
        return 0 if path.is_symlink() else None
    except OSError:
        return 0


class FolderWatch:
    """Looks whether a folder is still where it was, and no other has taken its place."""

    def __init__(self, root: Path) -> None:
        """Look at `root` as it is now; raises OSError where it is not there."""
        self._root = root
        self._handle = os.open(root, os.O_RDONLY)  # while it is open, no other folder gets its number

    def __call__(self) -> FolderLostError | None:
        """What it means if the folder is gone."""
        try:
            is_there = os.path.samestat(self._root.stat(), os.fstat(self._handle))
        except (FileNotFoundError, NotADirectoryError):
            is_there = False
        except OSError:  # storage that hangs or hiccups is not gone
            is_there = True
        if is_there:
            return None
        return FolderLostError(
            f"OUTPUT_DIR {self._root} was removed or renamed while the run wrote there; go on with --resume "
            "from where it is now, if there is such a place"
        )


def set_earlier_run_aside(root: Path) -> None:
    """Move what an earlier run left in `root` to a folder of its own in there, so that nothing is lost."""
    patterns = (*_FOLDERS, *_FILES, "model_*.pth", "events.out.tfevents.*")
    earlier = {path: None for pattern in patterns for path in root.glob(pattern)}
    if not earlier:
        return
    aside = root / time.strftime("earlier-%Y%m%d-%H%M%S")
    while aside.exists():
        aside = aside.with_name(aside.name + "-")
    aside.mkdir()
    for path in earlier:
        path.rename(aside / path.name)
    logger.info("%s held an earlier run: moved to %s (--resume goes on with a run)", root, aside)


class History:
    """OUTPUT_DIR/history.jsonl: a line at each start of a training, and at each end that it lives to see.

    A context around the training, which writes the end of what `begin` began.
    """

    def __init__(self, path: Path) -> None:
        """Write to `path`, nothing yet."""
        self._path = path
        self._file: GrowingFile | None = None
        self.closing = ""
        """What there is to say of an end without a fault."""

    def begin(self, step: int, num_ranks: int, notes: Sequence[str] = ()) -> None:
        """Write that a training starts, having done `step` steps; `notes` say what is unusual about it."""
        self._file = GrowingFile(self._path, of_lines=True)
        where = {"host": socket.gethostname(), "pid": os.getpid(), "began": process_start(os.getpid())}
        who = {**where, "ranks": num_ranks, "job": scheduler_job()}
        said = {"notes": list(notes)} if notes else {}
        self._write({"event": "start", "time": time.time(), "step": step, **who, **said})

    def abandon(self) -> None:
        """Write no more: the folder is somebody else's."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> History:
        """Wait for `begin`."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write how it ended."""
        self.end(error)

    def end(self, error: BaseException | None) -> None:
        """Write, once, that it "finished", "saved" (asked to leave) or "failed", with what was said."""
        if self._file is not None:
            outcome = "finished" if error is None else "saved" if isinstance(error, Interrupted) else "failed"
            said = (
                self.closing if error is None else " ".join(str(error).split())[:500] or type(error).__name__
            )
            self._write({"event": "end", "time": time.time(), "outcome": outcome, "message": said})
            self.abandon()

    def _write(self, entry: dict[str, Any]) -> None:
        assert self._file is not None
        self._file.append((json.dumps(entry) + "\n").encode())


def shorten(names: Sequence[str], separator: str = ", ", limit: int = 8) -> str:
    """Join names for a message; behind the first `limit` only the number of the others is given."""
    shown = separator.join(names[:limit])
    return shown if len(names) <= limit else f"{shown}{separator}... {len(names) - limit} more"
