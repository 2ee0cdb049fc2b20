"""The trainer's side of a tracker that has a process of its own; see `lgd.trackers.serve`."""

from __future__ import annotations

import json
import logging
import multiprocessing
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path

from torch import Tensor

from lgd.exits import describe_end
from lgd.ranks.interruption import BLOCKED_AT_START
from lgd.trackers.tracker import FINISHED, LEFT, Entry, Log, Scalar

logger = logging.getLogger(__name__)

MOST_BYTES = 64 * 2**20
"""Of entries that wait for a tracker; one that is so far behind is given up."""

_SECONDS_IN_VAIN = 2.0
"""How long the end waits for a tracker that takes nothing."""


class TrackerProcess:
    """Writes to a tracker from another process; nothing here waits for it, nor fails if it does."""

    def __init__(self, name: str, output_dir: Path, log: Log) -> None:
        """Start the process, which takes its first entry when it is ready.

        Args:
            name: of the tracker.
            output_dir: of the run; the tracker's files go into its folder `trackers`.
            log: project and settings.
        """
        self.name = name
        self._waiting: deque[bytes] = deque()
        self._num_bytes = 0
        self._changed = threading.Condition()
        self._is_wanted, self._ends, self._fails = True, False, False
        root = output_dir.absolute()
        about = {"name": root.name, "project": log.project, "folder": str(root / "trackers" / name)}
        ours = self._start(json.dumps({**about, "settings": log.settings}))
        self._sender = threading.Thread(target=self._send, args=(ours,), daemon=True)
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._sender.start()
        self._listener.start()

    def add_scalars(self, step: int, scalars: Iterable[Scalar]) -> None:
        """Add points of curves: a student's by their tags, others' with the model's name behind."""
        values = {tag if model == "student" else f"{tag}/{model}": value for model, tag, value in scalars}
        if values:
            self._add(Entry(step, next(iter(values)), time.time(), scalars=values))

    def add_images(self, tag: str, step: int, images: Sequence[Tensor]) -> None:
        """Add (3, H, W) uint8 RGB images under tags with their index."""
        arrays = (image.permute(1, 2, 0).contiguous().numpy() for image in images)
        pictures = {f"{tag}/{index}": array for index, array in enumerate(arrays)}
        if pictures:
            self._add(Entry(step, tag, time.time(), images=pictures))

    def add_text(self, tag: str, text: str, step: int) -> None:
        """Add a text."""
        self._add(Entry(step, tag, time.time(), texts={tag: text}))

    def flush(self) -> dict[Path, str]:
        """Nothing waits for the disk."""
        return {}

    def close(self, seconds: float, *, finished: bool) -> None:
        """Let the process write what there is, for at most so many seconds."""
        with self._changed:
            if not self._is_wanted:
                return
            self._is_wanted, self._ends = False, True
            self._waiting.append(FINISHED if finished else LEFT)
            self._changed.notify()
        begin = time.monotonic()
        while self._process.poll() is None:
            waited = time.monotonic() - begin
            if self._fails and waited > _SECONDS_IN_VAIN:
                break
            if waited > seconds:
                logger.warning("%s: not done in %.0f s; what it had not taken is lost", self.name, seconds)
                break
            time.sleep(0.02)
        self._kill()

    def _start(self, told: str) -> multiprocessing.connection.Connection:
        receives, sends = multiprocessing.Pipe(duplex=False)
        program = f"import sys; sys.path[:] = {sys.path!r}; from lgd.trackers.serve import serve; serve()"
        # Of the signals that ask this process to leave, it inherits that they are blocked.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED_AT_START)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", program, str(receives.fileno()), self.name, told],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                text=True,
                pass_fds=[receives.fileno()],
                start_new_session=True,  # there is no terminal to ask a question on
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            receives.close()
        return sends

    def _add(self, entry: Entry) -> None:
        with self._changed:
            if not self._is_wanted:
                return
            data = pickle.dumps(entry)
            if self._num_bytes + len(data) > MOST_BYTES:
                self._is_wanted = False
                logger.warning(
                    "%s: does not keep up, %d entries wait; the training goes on without it",
                    *(self.name, len(self._waiting)),
                )
                self._kill()
                return
            self._num_bytes += len(data)
            self._waiting.append(data)
            self._changed.notify()

    def _send(self, connection: multiprocessing.connection.Connection) -> None:
        """What a thread does: send what waits, until the end."""
        with connection:
            while True:
                with self._changed:
                    while not self._waiting and not self._ends:
                        self._changed.wait()
                    if not self._waiting:
                        return
                    data = self._waiting.popleft()
                try:
                    connection.send_bytes(data)
                except OSError:
                    return
                with self._changed:
                    self._num_bytes -= len(data)

    def _listen(self) -> None:
        """What another thread does: log what the process says, and that it died."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            level, _, text = line.rstrip("\n").partition(" ")
            self._fails = level == "WARNING"
            logger.log(logging.getLevelNamesMapping().get(level, logging.INFO), "%s: %s", self.name, text)
        code = self._process.wait()
        with self._changed:
            was_wanted, self._is_wanted, self._ends = self._is_wanted, False, True
            self._waiting.clear()
            self._changed.notify()
        if was_wanted:
            logger.warning(
                "%s: its process %s; the training goes on without it", self.name, describe_end(code)
            )

    def _kill(self) -> None:
        self._process.kill()
        self._process.wait()
        with self._changed:
            self._ends = True
            self._waiting.clear()
            self._changed.notify()
