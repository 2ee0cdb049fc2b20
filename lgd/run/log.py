"""Where a run says what it does: the terminal, and OUTPUT_DIR/log.txt."""

from __future__ import annotations

import logging
import select
import sys
from pathlib import Path
from typing import TextIO

from lgd.events import send_events
from lgd.files import GrowingFile
from lgd.notices import above_bars

LOG_FILE = "log.txt"
"""In OUTPUT_DIR."""


class TerminalError(RuntimeError):
    """Nobody reads what the run says."""


class _Quiet(logging.StreamHandler):  # type: ignore[type-arg]
    """Loses a line that a disk or a pipe does not take, where logging would write a traceback."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line above the bars."""
        with above_bars(self.stream):
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        """Let the run go on: `find_broken_terminal` is who speaks of a pipe."""
        if not isinstance(sys.exception(), OSError):
            super().handleError(record)


class _LogFile(logging.Handler):
    """Writes to a file, for which lines wait where the disk refuses them."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._file = GrowingFile(path, of_lines=True)
        self.path = self._file.path

    def emit(self, record: logging.LogRecord) -> None:
        self._file.append((self.format(record) + "\n").encode(errors="replace"))

    def flush(self) -> None:
        """Try again to write what waits."""
        self._file.flush()


def start_logging(rank: int, stream: TextIO | None = None) -> None:
    """Send the library's log to the terminal: all of rank 0's, warnings of the others.

    Args:
        rank: of this process.
        stream: where to; None for stdout.
    """
    handler = _Quiet(stream or sys.stdout)
    prefix = "" if rank == 0 else f"rank {rank}: "
    handler.setFormatter(logging.Formatter(f"[%(asctime)s] {prefix}%(message)s", "%H:%M:%S"))
    root = logging.getLogger("lgd")
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO if rank == 0 else logging.WARNING)
    root.propagate = False


def log_as_json(rank: int = 0) -> None:
    """Send the library's words to stderr, and of rank 0 what `--json` shows to stdout."""
    start_logging(rank, sys.stderr)
    if rank == 0:
        send_events()


def log_to_file(path: Path, *, only_ends: bool = False) -> None:
    """Write the log to a file too, behind what it holds already.

    Args:
        path: of the file.
        only_ends: only what `write_to_log_file` is told to: of the ranks that don't write the log.
    """
    handler = _LogFile(path)
    handler.setLevel(logging.CRITICAL + 1 if only_ends else logging.NOTSET)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.getLogger("lgd").addHandler(handler)


def write_to_log_file(text: str) -> str | None:
    """Write to log.txt what shall not be on the terminal; returns its path, None where there is none yet."""
    path = None
    for handler in logging.getLogger("lgd").handlers:
        if isinstance(handler, _LogFile):
            path = str(handler.path)
            handler.handle(logging.LogRecord("lgd", logging.ERROR, __file__, 0, text, None, None))
    return path


def find_broken_terminal() -> TerminalError | None:
    """What it means if nobody will ever read what this process writes, as after `| head -1`."""
    poll = select.poll()
    poll.register(1, 0)
    try:
        is_broken = any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    except OSError:
        return None
    if not is_broken:
        return None
    return TerminalError(
        "nobody reads the output of this run any more (stdout is a broken pipe): send it to a file"
    )
