"""Exit codes of `python -m lgd.train` and of whatever launches it."""

from __future__ import annotations

import os
import signal

DONE = 0
"""Trained and evaluated to the end."""

FAULT = 1
"""A fault: a bug, or ranks that lost one another."""

USER_ERROR = 2
"""Something that the user can mend: settings, data, weights, a full disk. Running again changes nothing."""

RUN_AGAIN = 75
"""Asked to leave, by SIGUSR2 or SIGTERM: what there was to save is saved; the same command with `--resume`
goes on from there. The number is EX_TEMPFAIL of sysexits.h."""

CTRL_C = 130
"""Ctrl-C: left at once, nothing saved."""


def describe_end(code: int) -> str:
    """How a process ended, and what it most likely was, for a message that begins with the process.

    Args:
        code: as `subprocess.Popen.returncode` has it: below 0 for a signal.
    """
    if code >= 0:
        return f"ended with code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    causes = {
        "SIGKILL": "; the machine may have run out of memory",
        "SIGBUS": "; shared memory (/dev/shm) or a disk may be full",
        "SIGSEGV": ", a fault in compiled code",
    }
    return f"was killed by {name}{causes.get(name, '')}"


def leave_on_ctrl_c() -> None:
    """Let Ctrl-C end the process at once: for a program's first lines, before its imports."""
    signal.signal(signal.SIGINT, lambda number, frame: os._exit(CTRL_C))
