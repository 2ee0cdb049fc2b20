"""Being asked to leave: a scheduler that takes the machine back sends SIGUSR2 or SIGTERM.

Nothing here imports torch: the signals are caught from the program's first line on, before the seconds that
its imports take.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import NoReturn

from lgd import exits
from lgd.ending import END_SECONDS, end

SIGNALS = (signal.SIGUSR2, signal.SIGTERM)
"""The signals that ask a run to save and leave. (Not SIGUSR1, which NCCL catches.)"""

BLOCKED_AT_START = (*SIGNALS, signal.SIGINT)
"""What a launcher blocks for a process that it starts, so that not even its first milliseconds are open."""

_PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>


class Interrupted(Exception):  # noqa: N818 (nothing is wrong)
    """All ranks leave together because one of them was asked to; the message says what is saved."""


class Interruption:
    """Whether this process has been asked to leave.

    As a context it catches the signals: the first is noted, all others change nothing. A launcher may start
    the process with the signals blocked, so that not even one in its first milliseconds is lost: they are
    let through here.

    Attributes:
        signal: the first that came, None before.
        on_signal: called at every signal, if set: a launcher passes them on to its workers.
        is_ctrl_c: whether Ctrl-C came, after `tidy_up_on_ctrl_c`; what is raised then is a consequence.
        give_up: ends the process because of an error, for a thread that finds out that the main thread does
            not get on; None where the process is not the run's own.
    """

    def __init__(self, *, until_exit: bool = False) -> None:
        """Listen to nothing yet.

        Args:
            until_exit: the process ends after the block: from the block's end on the signals are ignored, so
                that none can change its exit code. Otherwise what was there before is put back.
        """
        self.signal: signal.Signals | None = None
        self.on_signal: Callable[[signal.Signals], None] | None = None
        self.is_ctrl_c = False
        self.give_up: Callable[[BaseException], NoReturn] | None = None
        self._until_exit = until_exit
        self._before: dict[signal.Signals, object] = {}

    @property
    def requested(self) -> bool:
        """Whether one of the signals has come."""
        return self.signal is not None

    def __enter__(self) -> Interruption:
        """Catch the signals from here on. Only the main thread may do so."""
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._note)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, BLOCKED_AT_START)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop listening."""
        for number, before in self._before.items():
            signal.signal(number, signal.SIG_IGN if self._until_exit else before)  # type: ignore[arg-type]

    def tidy_up_on_ctrl_c(self) -> None:
        """Let Ctrl-C raise KeyboardInterrupt once, in a program whose Ctrl-C has ended it at once so far.

        The program has `END_SECONDS` from there to its end: it may be waiting for another rank, or for a
        device, and not notice. A second Ctrl-C ends it at once.
        """
        arrivals, notes = os.pipe()
        os.set_blocking(notes, False)
        # Written to by the signal itself, whatever the main thread does.
        signal.set_wakeup_fd(notes, warn_on_full_buffer=False)
        threading.Thread(target=_insist, args=(arrivals,), name="Ctrl-C", daemon=True).start()
        signal.signal(signal.SIGINT, self._tidy_up)

    def _tidy_up(self, number: int, frame: FrameType | None) -> None:
        if self.is_ctrl_c:
            end(exits.CTRL_C)
        self.is_ctrl_c = True
        raise KeyboardInterrupt

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal = signal.Signals(number)
        if self.on_signal is not None:
            self.on_signal(signal.Signals(number))


def _insist(arrivals: int) -> None:
    """End the process some time after Ctrl-C."""
    while os.read(arrivals, 1) != bytes([signal.SIGINT]):
        pass
    time.sleep(END_SECONDS)
    end(exits.CTRL_C)


def leave_with_parent(number: signal.Signals = signal.SIGTERM) -> None:
    """Ask the kernel for a signal when the parent dies: a killed launcher leaves no workers behind."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
