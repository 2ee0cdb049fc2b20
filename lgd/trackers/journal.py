"""What a tracker has of a run, kept in the run's folder: a resume goes on there, and tells it nothing twice.

Most libraries cannot take anything back, nor say what they have. So each entry is written down here before it
is handed over: what a kill at that moment loses is one entry, and none is there twice.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from pathlib import Path

from lgd.trackers.tracker import Entry


class Journal:
    """A file of JSON lines: the run's name in the library, then step and tag of each entry."""

    def __init__(self, path: Path) -> None:
        """Wait until no other process writes to it, and read it; raises OSError where that cannot be."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b", buffering=0)
        with contextlib.suppress(OSError):  # of file systems without locks
            fcntl.flock(self._file, fcntl.LOCK_EX)
        self.run: str | None = None
        self._known: set[tuple[int, str]] = set()
        self._file.seek(0)
        content = self._file.read()
        self._ends_whole = not content or content.endswith(b"\n")
        for line in content.splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):  # half a line
                self._read(json.loads(line))

    def __contains__(self, entry: Entry) -> bool:
        """Whether the entry was handed over."""
        return (entry.step, entry.tag) in self._known

    def begin(self, run: str) -> None:
        """Write down which run it is."""
        if run != self.run:
            self._write({"run": run})
            self.run = run

    def note(self, entry: Entry) -> None:
        """Write down that the entry is handed over; raises OSError where the disk refuses."""
        self._write({"step": entry.step, "tag": entry.tag})
        self._known.add((entry.step, entry.tag))

    def _read(self, line: dict[str, object]) -> None:
        if "run" in line:
            self.run = str(line["run"])
        else:
            self._known.add((int(str(line["step"])), str(line["tag"])))

    def _write(self, line: dict[str, object]) -> None:
        end = os.fstat(self._file.fileno()).st_size
        text = ("" if self._ends_whole else "\n") + json.dumps(line) + "\n"
        try:
            if self._file.write(text.encode()) < len(text.encode()):
                raise OSError("the disk is full")
        except OSError:
            with contextlib.suppress(OSError):
                self._file.truncate(end)
            raise
        self._ends_whole = True
