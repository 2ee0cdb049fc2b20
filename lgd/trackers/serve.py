"""What the process of a tracker does: entries come in through a pipe, and go to the library.

In a process of its own a library may wait for a server, ask its questions of nobody, catch signals, write to
the terminal or die, and the training does not notice.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pickle
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TextIO

import yaml

from lgd.ending import last_line
from lgd.ranks.interruption import BLOCKED_AT_START
from lgd.trackers.journal import Journal
from lgd.trackers.tracker import FINISHED, LEFT, About, Entry, LostError, Tracker

LIBRARIES = {
    "wandb": ("lgd.trackers.wandb", "WeightsAndBiases"),
    "mlflow": ("lgd.trackers.mlflow", "MLflow"),
    "trackio": ("lgd.trackers.trackio", "Trackio"),
}
"""Module and class of each tracker that has a process."""

_SECONDS_BETWEEN = 30.0
"""Between two tries."""

_SECONDS_ALONE = 20.0
"""In which the process ends when the trainer is gone, whatever it is doing."""

_MOST_BYTES = 16 * 2**20
"""Of entries that wait here; others wait with the trainer."""

Say = Callable[[str, str], None]
"""Says a line, with its level, to the trainer."""


class Delivery:
    """Hands entries over to a library, which starts with the first, and again until it takes them."""

    def __init__(self, name: str, about: About, say: Say) -> None:
        self._name, self._about, self._say = name, about, say
        self._journal: Journal | None = None
        self._tracker: Tracker | None = None
        self._fails = False

    def deliver(self, entry: Entry) -> None:
        """Hand an entry over unless that was done; waits for as long as it cannot be."""
        is_begun = False
        while True:
            try:
                journal, tracker = self._open()
                if not is_begun:
                    if entry in journal:
                        return
                    journal.note(entry)
                    is_begun = True
                tracker.add(entry)
            except LostError as error:
                self._complain(error, "some of it is lost")
                return
            except Exception as error:
                self._complain(error, f"tried again every {_SECONDS_BETWEEN:.0f} s")
                time.sleep(_SECONDS_BETWEEN)
                continue
            if self._fails:
                self._fails = False
                self._say("INFO", "takes what it is told again")
            return

    def close(self, *, finished: bool) -> None:
        """End the library's run."""
        if self._tracker is not None:
            try:
                self._tracker.close(finished=finished)
            except Exception as error:
                self._complain(error, "some of it may be lost")

    def _open(self) -> tuple[Journal, Tracker]:
        if self._journal is None:
            self._journal = Journal(self._about.folder.parent / f"{self._name}.jsonl")
        if self._tracker is None:
            module, kind = LIBRARIES[self._name]
            known = self._journal.run
            self._tracker = getattr(importlib.import_module(module), kind)(self._about, known)
            how = "begins" if known is None else "goes on with"
            self._say("INFO", f"{how} run {self._tracker.run}, {self._tracker.place}")
        self._journal.begin(self._tracker.run)
        return self._journal, self._tracker

    def _complain(self, error: Exception, consequence: str) -> None:
        """Say, once until it works again, what is wrong."""
        if not self._fails:
            self._fails = True
            said = last_line(str(error))[:300] or type(error).__name__
            self._say("WARNING", f"{said}; the training goes on, {consequence}")


class Inbox:
    """What the trainer has told, taken from the pipe at once, so that it is not lost with the trainer.

    Attributes:
        is_finished: at the end, whether the training came to its own.
    """

    def __init__(self, connection: Connection) -> None:
        self.is_finished = False
        self._connection = connection
        self._waiting: deque[bytes] = deque()
        self._num_bytes, self._has_ended = 0, False
        self._changed = threading.Condition()
        threading.Thread(target=self._receive, daemon=True).start()

    def __iter__(self) -> Iterator[bytes]:
        """Yield what comes, until the trainer says that it is done, or is gone."""
        while True:
            with self._changed:
                while not self._waiting and not self._has_ended:
                    self._changed.wait()
                if not self._waiting:
                    return
                data = self._waiting.popleft()
                self._num_bytes -= len(data)
                self._changed.notify()
            yield data

    def _receive(self) -> None:
        """What a thread does."""
        with contextlib.suppress(EOFError, OSError):
            while (data := self._connection.recv_bytes()) not in (FINISHED, LEFT):
                with self._changed:
                    while self._num_bytes > _MOST_BYTES:
                        self._changed.wait()
                    self._waiting.append(data)
                    self._num_bytes += len(data)
                    self._changed.notify()
            self.is_finished = data == FINISHED
        with self._changed:
            self._has_ended = True
            self._changed.notify()


def serve() -> None:
    """Deliver until the trainer says that it is done, or is gone."""
    number, name, told = sys.argv[1:]
    for caught in BLOCKED_AT_START:
        signal.signal(caught, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, BLOCKED_AT_START)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    stream = _keep_stdout()
    facts = json.loads(told)
    settings = yaml.safe_load(facts["settings"]) or {}
    about = About(facts["name"], facts["project"], Path(facts["folder"]), settings)
    delivery = Delivery(name, about, partial(_say, stream))
    inbox = Inbox(Connection(int(number)))
    for data in inbox:
        delivery.deliver(pickle.loads(data))
    delivery.close(finished=inbox.is_finished)


def _say(stream: TextIO, level: str, text: str) -> None:
    with contextlib.suppress(
        OSError
    ):  # the trainer is gone, and what it told shall be delivered nevertheless
        stream.write(f"{level} {text}\n")
        stream.flush()


def _end_with(trainer: int) -> None:
    """What a thread does: end this process soon after the trainer."""
    while os.getppid() == trainer:
        time.sleep(1.0)
    time.sleep(_SECONDS_ALONE)
    os._exit(1)


def _keep_stdout() -> TextIO:
    """Keep stdout, where the trainer listens, for our own lines; what libraries write goes nowhere."""
    ours = os.fdopen(os.dup(1), "w")
    sink = os.open(os.devnull, os.O_RDWR)
    for handle in (0, 1, 2):
        os.dup2(sink, handle)
    return ours
