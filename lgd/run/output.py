"""The output folder of a run: what lies where, the log, and what becomes of an earlier run."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from lgd.ranks.interruption import Interrupted
from lgd.run.job import process_start, scheduler_job

logger = logging.getLogger(__name__)


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
        """Weights of the best student AP."""
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


def set_earlier_run_aside(root: Path) -> None:
    """Move what an earlier run left in `root` to a folder of its own in there, so that nothing is lost."""
    names = ("checkpoints", "inference", "teacher", "config.yaml", "log.txt", "metrics.jsonl", "results.json")
    patterns = (*names, "history.jsonl", "model_*.pth", "events.out.tfevents.*")
    earlier = [path for pattern in patterns for path in root.glob(pattern)]
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
        self._has_begun = False

    def begin(self, step: int, num_ranks: int) -> None:
        """Write that a training starts, having done `step` steps."""
        self._has_begun = True
        where = {"host": socket.gethostname(), "pid": os.getpid(), "began": process_start(os.getpid())}
        who = {**where, "ranks": num_ranks, "job": scheduler_job()}
        self._write({"event": "start", "time": time.time(), "step": step, **who})

    def __enter__(self) -> History:
        """Wait for `begin`."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write how it ended: "finished", "saved" (asked to leave) or "failed", with what was said."""
        if self._has_begun:
            outcome = "finished" if error is None else "saved" if isinstance(error, Interrupted) else "failed"
            said = "" if error is None else " ".join(str(error).split())[:500] or type(error).__name__
            with contextlib.suppress(OSError):  # the error that ended the run matters more
                self._write({"event": "end", "time": time.time(), "outcome": outcome, "message": said})

    def _write(self, entry: dict[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


def start_logging(rank: int) -> None:
    """Send the library's log to the terminal: all of rank 0's, warnings of the others."""
    handler = logging.StreamHandler(sys.stdout)
    prefix = "" if rank == 0 else f"rank {rank}: "
    handler.setFormatter(logging.Formatter(f"[%(asctime)s] {prefix}%(message)s", "%H:%M:%S"))
    root = logging.getLogger("lgd")
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO if rank == 0 else logging.WARNING)
    root.propagate = False


def log_to_file(path: Path) -> None:
    """Write the log to a file too, behind what it holds already."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.getLogger("lgd").addHandler(handler)


def shorten(names: Sequence[str], separator: str = ", ", limit: int = 8) -> str:
    """Join names for a message; behind the first `limit` only the number of the others is given."""
    shown = separator.join(names[:limit])
    return shown if len(names) <= limit else f"{shown}{separator}... {len(names) - limit} more"
