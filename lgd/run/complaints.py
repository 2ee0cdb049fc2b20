"""What commands other than the training say at their end: one line for what the user can mend."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from lgd import exits
from lgd.ending import last_line
from lgd.files import say_why
from lgd.run.run import USER_ERRORS


def answer(
    command: Callable[[], int],
    place: str | os.PathLike[str] | None,
    *,
    also: tuple[type[Exception], ...] = (),
) -> int:
    """Run a command, and end as `lgd.exits` says whatever it raises.

    Args:
        command: returns its exit code.
        place: what it writes to, for errors of the disk that do not say where they were met.
        also: further errors that the user can mend.

    Raises:
        BrokenPipeError: nobody reads stdout any more.
        Exception: a fault of ours.
    """
    mendable: tuple[type[Exception], ...] = (*USER_ERRORS, ImportError, *also)
    try:
        return command()
    except mendable as error:
        return complain(str(error))
    except BrokenPipeError:
        raise
    except OSError as error:
        return complain(say_why(error, place))
    except KeyboardInterrupt:
        return exits.CTRL_C


def complain(message: str) -> int:
    """Say what is wrong in one line; returns the exit code."""
    sys.stderr.write(f"error: {last_line(message)}\n")
    return exits.USER_ERROR
