"""TensorBoard's event files, written at once and whole, also where the disk is full."""

from __future__ import annotations

import io
import itertools
import os
import socket
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from lgd.files import GrowingFile
from lgd.trackers.tracker import Scalar

_numbers = itertools.count()


class TensorBoard:
    """The runs OUTPUT_DIR (student and all that is shared) and OUTPUT_DIR/teacher."""

    def __init__(self, output_dir: Path, first_step: int) -> None:
        """Open the first; what there are of earlier events from `first_step` on no longer counts.

        Raises:
            ValueError: TensorBoard is not installed.
            OSError: the folder cannot be written to.
        """
        self._output_dir = output_dir
        self._first_step = first_step
        self._runs: dict[str, _EventFile] = {}
        self._run("student")

    def add_scalars(self, step: int, scalars: Iterable[Scalar]) -> None:
        """Add points of curves."""
        from torch.utils.tensorboard import summary

        for model, tag, value in scalars:
            self._run(model).add(summary.scalar(tag, value), step)  # type: ignore[no-untyped-call]
        self.flush()

    def add_images(self, tag: str, step: int, images: Sequence[Tensor]) -> None:
        """Add (3, H, W) uint8 images under tags with their index."""
        from torch.utils.tensorboard import summary

        for index, image in enumerate(images):
            picture = summary.image(f"{tag}/{index}", image, dataformats="CHW")  # type: ignore[no-untyped-call]
            self._run("student").add(picture, step)
        self.flush()

    def add_text(self, tag: str, text: str, step: int) -> None:
        """Add a Markdown text."""
        from torch.utils.tensorboard import summary

        self._run("student").add(summary.text(tag, text), step)  # type: ignore[no-untyped-call]
        self.flush()

    def flush(self) -> dict[Path, str]:
        """Write what there is; why the disk refuses some of it, by file."""
        reasons = {run.file.path: run.file.flush() for run in self._runs.values()}
        return {path: reason for path, reason in reasons.items() if reason}

    def close(self, seconds: float = 0.0, *, finished: bool = True) -> None:
        """Write what the disk takes, at once, and close."""
        for run in self._runs.values():
            run.file.close()

    def _run(self, model: str) -> _EventFile:
        if model not in self._runs:
            folder = self._output_dir if model == "student" else self._output_dir / model
            self._runs[model] = _EventFile(folder, self._first_step)
        return self._runs[model]


class _EventFile:
    """One run's file of events.

    Not torch's SummaryWriter: it writes in a thread, which a full disk ends with a traceback and half a
    record.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        try:
            from tensorboard.compat.proto.event_pb2 import Event, SessionLog
            from torch.utils.tensorboard import summary  # noqa: F401
        except ImportError as error:
            raise ValueError("TensorBoard is not installed: pip install tensorboard") from error
        name = f"{time.time():010.0f}.{socket.gethostname()}.{os.getpid()}.{next(_numbers)}"
        self.file = GrowingFile(folder / f"events.out.tfevents.{name}")
        self._event = Event
        self._append(Event(wall_time=time.time(), file_version="brain.Event:2"))
        # What TensorBoard knows a restart by: it hides what an earlier file has of these steps.
        start = SessionLog(status=SessionLog.START)
        self._append(Event(wall_time=time.time(), step=first_step, session_log=start))

    def add(self, summary: Any, step: int) -> None:
        """Add what `torch.utils.tensorboard.summary` makes."""
        self._append(self._event(wall_time=time.time(), step=step, summary=summary))

    def _append(self, event: Any) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        record = io.BytesIO()
        RecordWriter(record).write(event.SerializeToString())
        self.file.append(record.getvalue())
