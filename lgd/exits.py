"""Exit codes of `python -m lgd.train` and of whatever launches it."""

from __future__ import annotations

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
