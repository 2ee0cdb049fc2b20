"""The end of a program: soon, with one exit code, silent after the last line, and nothing is left behind."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import signal
import sys
import threading
import traceback
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn

from lgd import exits

END_SECONDS = 5.0
"""How long an end may take, whatever hangs: children that don't die, a pipe that nobody empties, a disk."""

BREAKING = ("Cc", "Zl", "Zp", "Cs")
"""Kinds of characters that break a line or a terminal: control characters, separators of lines and of
paragraphs, bytes that are no text."""

_LONGEST_LINE = 2000
"""Characters of a last line: what a message quotes may have any number."""

_MALLOC_OPTIONS = {-1: 2**30, -2: 2**26, -3: 2**25}
"""Bytes, by the numbers of malloc.h: free memory from which some is handed back (M_TRIM_THRESHOLD), what is
asked of the system beyond what is wanted (M_TOP_PAD), and from where on a piece is asked of it by itself
(M_MMAP_THRESHOLD, at the largest value that glibc lets it grow to)."""

_ENDING = threading.Lock()
"""Held from the first call of `end` on: a process has one end."""


def as_program(main: Callable[[], int]) -> NoReturn:
    """Run `main` and end the process with the code that it returns.

    Ctrl-C before `main` handles it itself ends the process at once. An error that `main` does not handle is a
    fault: its traceback, then one line. A reader of stdout that has gone is no reason for either.

    Torch's threads soon sleep when they wait for each other, unless the environment says otherwise: to be
    called before torch is imported. See also `keep_freed_memory`.
    """
    _open_closed_streams()
    # Threads that spin on cores that others use too keep the ones they wait for from computing.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    keep_freed_memory()
    signal.signal(signal.SIGINT, lambda number, frame: end(exits.CTRL_C))
    try:
        code = main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        end(exits.CTRL_C)
    except SystemExit as error:
        end(error.code if isinstance(error.code, int) else exits.DONE)  # argparse has said why
    except BrokenPipeError:  # as in `lgd convert --help | head -1`
        end(exits.FAULT)
    except BaseException as error:
        end(partial(_report, error))
    end(code)


def keep_freed_memory() -> None:
    """Let glibc keep memory that was freed, up to a gibibyte, unless the environment says otherwise.

    A training step on a CPU takes and frees the same memory every time. Handed back to the system in between
    it comes again page by page, which is a tenth of a small model's step. `malloc_trim` still hands it back.
    """
    settings = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
    if any(name in os.environ for name in settings):
        return
    with contextlib.suppress(OSError, AttributeError):  # another system, another C library
        set_option = ctypes.CDLL(None).mallopt
        for option, value in _MALLOC_OPTIONS.items():
            set_option(option, value)


def end(code: int | Callable[[], int]) -> NoReturn:
    """End this process, from whatever thread and whatever else it is doing; the first call counts.

    Its children are killed, what is registered with `atexit` is done, and nothing more is written to the
    terminal. If that takes longer than `END_SECONDS`, the process ends without.

    Args:
        code: to end with; or what says the last words and returns it.
    """
    if not _ENDING.acquire(blocking=False):
        threading.Event().wait()
    _after(END_SECONDS, exits.FAULT if callable(code) else code)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    if callable(code):
        try:
            code = code()
        except BaseException:  # its words are lost, its code is not
            code = exits.FAULT
        _after(END_SECONDS, code)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BaseException):
            stream.flush()
    for step in (_silence, kill_children, atexit._run_exitfuncs):
        with contextlib.suppress(BaseException):
            step()
    os._exit(code)


def kill_children() -> None:
    """Kill every process that descends from this one, and wait for the own children's ends."""
    own = list(children(os.getpid()))
    descendants = [*own]
    for process in descendants:
        descendants += children(process)
    for process in descendants:
        with contextlib.suppress(OSError):
            os.kill(process, signal.SIGKILL)
    for process in own:
        with contextlib.suppress(OSError):
            os.waitpid(process, 0)
    remove_shared_memory([os.getpid(), *descendants])


def remove_shared_memory(processes: Sequence[int]) -> None:
    """Remove segments of torch that a killed process had no time to take out of the file system again."""
    for process in processes:
        for path in Path("/dev/shm").glob(f"torch_{process}_*"):
            with contextlib.suppress(OSError):
                path.unlink()


def children(process: int) -> Iterator[int]:
    """The children of a process, on Linux."""
    for path in Path(f"/proc/{process}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            yield from map(int, path.read_text().split())


def _after(seconds: float, code: int) -> None:
    """End the process hard after a while; at once where there can be no thread any more to wait for that."""
    timer = threading.Timer(seconds, os._exit, [code])
    timer.daemon = True
    try:
        timer.start()
    except RuntimeError:
        os._exit(code)


def _silence() -> None:
    """Let nothing come after the last line: libraries have much to say about an end."""
    sink = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        os.dup2(sink, number)


def _open_closed_streams() -> None:
    """Open what the program was started without (`>&-`): a file or a socket would take its number."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
        if getattr(sys, name) is None:
            mode = "r" if number == 0 else "w"
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115 (for good)


def _report(error: BaseException) -> int:
    """Say what nobody has handled."""
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    traceback.print_exception(error)
    sys.stderr.write(f"error: {last_line(describe(error))}\n")
    return exits.FAULT


def describe(error: BaseException) -> str:
    """The type and the message of an error in one line."""
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def last_line(message: str) -> str:
    """A message as one line for the terminal: nothing breaks it, and its middle is cut if it is long."""
    line = "".join(
        character
        if character.isprintable() or unicodedata.category(character) == "Zs"
        else character.encode("unicode_escape").decode()
        for character in " ".join(message.split())
    )
    half = _LONGEST_LINE // 2
    return line if len(line) <= _LONGEST_LINE else f"{line[:half]} ... {line[-half:]}"
