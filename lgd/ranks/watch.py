"""What looks after a run while it works: whether it gets on, and whether all that it needs is there.

Each rank has its own watch, in threads, because the main thread may be waiting for another rank or for a
device. All it costs the main thread is to note where it is.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import NoReturn

from lgd.ending import children
from lgd.ranks.channel import Channel
from lgd.ranks.interruption import Interrupted
from lgd.ranks.rounds import Mark, Rounds
from lgd.ranks.store import RanksError

_TICK_SECONDS = 1.0
"""How often a watch looks at its rank."""

_TALK_SECONDS = 2.0
"""How often it hears of the others."""

_GRACE_SECONDS = 4.0
"""How long the main thread has to notice that something is gone, before it is ended where it is."""

LONG_SECONDS = 3600.0
"""What is no part of a step may take so long: the start, compiling, scoring, writing."""


class StallError(RuntimeError):
    """The run stands still; the message names the rank by which it does."""


Check = Callable[[], Exception | None]
"""Looks at something that the run needs, and says what is wrong with it."""


class Watch:
    """Looks after this rank, and together with the watches of the others after the run.

    As a context it does so during the block. What it finds is raised in the main thread when this makes its
    next mark; where it makes none for some seconds, the process is given up. So it is where the run stands.

    A rank stands if it made no mark for as long as its last one may take; the run stands if all ranks do, or
    are silent. While a whole process is stopped, as in a job that is suspended, its clock stops too.
    """

    def __init__(
        self,
        channel: Channel | None = None,
        stall_seconds: float = 0.0,
        checks: Sequence[Check] = (),
        *,
        give_up: Callable[[Exception], NoReturn] | None = None,
        keep: Callable[[str], object] = lambda text: None,
    ) -> None:
        """Look at nothing yet.

        Args:
            channel: to the other ranks; None for a process alone.
            stall_seconds: how long a part of a step may take; 0 for ever.
            checks: what else to look at, every second.
            give_up: ends the process; None leaves it to the main thread.
            keep: writes down where this rank's threads are.
        """
        self._stall_seconds = stall_seconds
        self._checks = list(checks)
        self._give_up = give_up
        self._keep = keep
        self._mark = Mark(0, 0, "the start", may_take_long=True)
        self._stands = False
        self._problem: Exception | None = None
        self._is_over = threading.Event()
        self._rounds = Rounds(channel) if channel is not None and channel.store is not None else None

    def at(self, step: int, place: str, *, may_take_long: bool = False) -> None:
        """Note that the main thread comes to a place.

        Args:
            step: that it works on, from 1.
            place: what it does there, for messages.
            may_take_long: whether that is no part of a step.

        Raises:
            Exception: what has been found to be wrong.
        """
        if self._problem is not None:
            raise self._problem
        stage = self._mark.stage + 1 if self._mark.step == step else 0
        self._mark = Mark(step, stage, place, may_take_long)

    def again(self, place: str, *, may_take_long: bool = False) -> None:
        """Note that the main thread gets on, in the same step."""
        self.at(self._mark.step, place, may_take_long=may_take_long)

    def look_at(self, check: Check) -> None:
        """Look at something more from now on."""
        self._checks.append(check)

    def require(self) -> None:
        """Look at everything now; raises what is wrong."""
        self._look()
        if self._problem is not None:
            raise self._problem

    def __enter__(self) -> Watch:
        """Begin."""
        for work in (self._watch_main_thread, self._watch_the_rest, self._talk):
            threading.Thread(target=work, name="watch", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop; tell the other ranks of an error that is this rank's own.

        Raises:
            Exception: what is found to be wrong, in place of an error of other ranks or of files, which then
                comes of it.
        """
        self._is_over.set()
        if isinstance(error, (RanksError, OSError)) and error is not self._problem:
            self._look()
            if self._problem is not None:
                raise self._problem from error
        is_own = isinstance(error, Exception) and not isinstance(error, (RanksError, StallError, Interrupted))
        if self._rounds is not None and is_own:
            name = f"rank {self._rounds.rank} on {socket.gethostname()}"
            self._rounds.tell(f"{name} ended: {error or repr(error)}", is_stall=False)

    def _watch_main_thread(self) -> None:
        seen, last, idle, grace = self._mark, time.monotonic(), 0.0, 0.0
        while not self._is_over.wait(_TICK_SECONDS):
            now = time.monotonic()
            passed, last = min(now - last, 2 * _TICK_SECONDS), now
            idle = idle + passed if self._mark is seen else 0.0
            seen = self._mark
            self._stands = 0.0 < self._patience(seen) < idle
            if self._problem is not None:
                grace += passed
                if grace > _GRACE_SECONDS:
                    self._end(self._problem)
            elif self._stands:
                self._look_for_a_stall()

    def _patience(self, mark: Mark) -> float:
        return max(self._stall_seconds, LONG_SECONDS if mark.may_take_long and self._stall_seconds else 0.0)

    def _watch_the_rest(self) -> None:
        while not self._is_over.wait(_TICK_SECONDS):
            self._look()

    def _look(self) -> None:
        for check in list(self._checks):
            problem = check()
            if problem is not None and self._problem is None:
                self._problem = problem

    def _talk(self) -> None:
        """Hear of the other ranks; their keeper may hang, and this thread with it."""
        while self._rounds is not None and not self._is_over.wait(_TALK_SECONDS):
            news = self._rounds.go(self._mark, stands=self._stands)
            if news is None or self._problem is not None:
                continue
            if news.is_stall:
                self._keep(self._describe_threads())
            self._problem = StallError(news.message) if news.is_stall else RanksError(news.message)

    def _look_for_a_stall(self) -> None:
        """End the run if no rank gets on."""
        reason = self._rounds.find_stall(self._mark) if self._rounds else f"the run stands at {self._mark}"
        if reason is None:
            return
        message = (
            f"no step for {self._patience(self._mark):g} s (TRAIN.STALL_TIMEOUT): {reason}. Where the "
            "threads of every rank are is in log.txt"
        )
        self._keep(self._describe_threads())
        if self._rounds is not None:
            self._rounds.tell(message, is_stall=True)
            time.sleep(2 * _TALK_SECONDS)  # the others hear of it, and write down where they are
        self._end(StallError(message))

    def _end(self, problem: Exception) -> None:
        self._problem = problem
        if self._give_up is not None and not self._is_over.is_set():
            self._give_up(problem)

    def _describe_threads(self) -> str:
        rank = self._rounds.rank if self._rounds else 0
        head = f"rank {rank} on {socket.gethostname()}, process {os.getpid()}, stands at {self._mark}"
        return "\n".join([head, *_describe_threads(), *_describe_children()])


def _describe_threads() -> Iterator[str]:
    """Where every thread of this process is, but those of the watch."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for number, frame in sys._current_frames().items():
        name = names.get(number, str(number))
        if name != "watch":
            yield f"thread {name}:\n" + "".join(traceback.format_stack(frame)).rstrip()


def _describe_children() -> Iterator[str]:
    """The state of every child of this process, such as "T (stopped)"."""
    for process in children(os.getpid()):
        try:
            lines = Path(f"/proc/{process}/status").read_text().splitlines()
        except OSError:
            continue
        facts = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
        yield f"child {process} ({facts.get('Name')}): {facts.get('State')}"
