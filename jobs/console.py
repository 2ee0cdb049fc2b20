"""How the commands of this folder end, whatever happens to them."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable

from jobs.text import on_one_line


def guarded(action: Callable[[], int]) -> int:
    """Do what a command line says; returns the exit code.

    What the user can mend (ValueError, OSError) is one line and 2, Ctrl-C is 130; a reader of the output that
    has gone (`| head`) is no error.
    """
    with contextlib.suppress(AttributeError):
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        code = action()
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # What is still to be flushed at the end would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}")
    except ValueError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        return 130


def _fail(message: str) -> int:
    sys.stderr.write(f"error: {on_one_line(' '.join(message.split()))}\n")
    return 2
