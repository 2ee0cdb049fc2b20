"""Files that a full disk or a kill leaves whole: replaced as one, or grown by whole entries."""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
import re
import select
import stat
import tempfile
import time
import uuid
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

logger = logging.getLogger(__name__)

FULL = (errno.ENOSPC, errno.EDQUOT)
"""What the system says of a disk, or a quota, without room."""

_TO_LOOK = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
"""Opens even a pipe to which nobody writes."""

_TO_APPEND = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC

_LEFTOVER = re.compile(r"\..+\.[0-9a-f]{32}\.tmp")
"""What `temporary_name` gives."""


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file that takes the place of `path` when the block ends, flushed to the disk before.

    Folders that are missing are made. Where the block or the disk fails, `path` is as it was and nothing is
    left behind.

    Raises:
        OSError: the disk is full or the folder read-only; it names `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path, uuid.uuid4().hex)
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _flush_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename == str(temporary):
            error.filename = str(path)
        raise


def open_file(path: Path) -> BufferedReader:
    """Open a file to read, but nothing that would keep its reader waiting or reading for ever.

    Raises:
        OSError: it cannot be opened, or is no file: a folder, a pipe, a device.
    """
    return os.fdopen(_open_file(path), "rb")


def read_file(path: Path) -> bytes:
    """Read a whole file, of any size; raises OSError as `open_file` does."""
    with open_file(path) as file:
        return file.read()


def read_small(path: Path, most: int, *, patience: float = 0.0) -> bytes:
    """Read a whole file that anybody may have written.

    Args:
        path: the file.
        most: bytes that it may have.
        patience: seconds in which a pipe or a device has to say all; 0 takes files alone.

    Raises:
        OSError: it cannot be read, is larger, or takes longer.
    """
    handle = os.open(path, _TO_LOOK) if patience else _open_file(path)
    content, deadline = b"", time.monotonic() + patience
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    try:
        while len(content) <= most:
            if not poll.poll(1000 * max(0.0, deadline - time.monotonic())):
                raise OSError(errno.ETIMEDOUT, f"not written to its end in {patience:g} s", str(path))
            chunk = os.read(handle, most + 1 - len(content))
            if not chunk:
                return content
            content += chunk
    finally:
        os.close(handle)
    raise OSError(errno.EFBIG, f"larger than the {most} bytes that one like it may have", str(path))


def _open_file(path: Path, flags: int = _TO_LOOK) -> int:
    handle = os.open(path, flags, 0o666)
    mode = os.fstat(handle).st_mode
    if stat.S_ISREG(mode):
        return handle
    os.close(handle)
    if stat.S_ISDIR(mode):
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.ENXIO, "a pipe or a device, where a file is needed", str(path))


def write_text_atomically(path: Path, text: str) -> None:
    """Write `text` as UTF-8 through `replacing`."""
    with replacing(path) as file:
        file.write(text.encode())


def typed_path(text: str) -> Path:
    """A path of a command line; ~ is a home also where no shell has seen to it, as in --out=~/found.

    Raises:
        argparse.ArgumentTypeError: nobody is called so; or an empty text, as of a variable that is not set.
    """
    import argparse  # takes its time, which programs that are only just starting do not have

    if not text:
        raise argparse.ArgumentTypeError("the path is empty; write . for the folder that you are in")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        name = text.partition("/")[0]
        raise argparse.ArgumentTypeError(f"{text}: {name}'s home is not known here") from None


def at_home(path: str | os.PathLike[str]) -> Path:
    """A path to read from, with ~ as a home; the home of nobody stays as it is, and nothing is there."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 (pathlib's raises for nobody)


def say_why(error: OSError, place: str | os.PathLike[str] | None) -> str:
    """A disk's refusal in words, and where; `place` where the error does not say that."""
    in_the_way = error.errno in (errno.EEXIST, errno.ENOTDIR)
    reason = "a file, where a folder is needed" if in_the_way else error.strerror or str(error)
    return f"{reason}: {error.filename or place}"


def prepare_file(path: Path) -> None:
    """See that a file can be written, before the long work whose results it takes.

    Folders that are missing are made.

    Raises:
        OSError: it cannot, or is a folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        error.filename = str(path)
        raise


def temporary_name(path: Path, mark: str) -> Path:
    """A name beside `path` that only the holder of `mark` (32 hexadecimal digits) uses."""
    return path.with_name(f".{path.name}.{mark}.tmp")


def clear_leftovers(folder: Path, *, before: float = math.inf) -> None:
    """Remove what killed processes left half-written in `folder`.

    Args:
        folder: where nobody may be writing what was begun then.
        before: seconds since 1970; what was changed later stays.
    """
    for path in folder.iterdir() if folder.is_dir() else ():
        if _LEFTOVER.fullmatch(path.name):
            with contextlib.suppress(OSError):
                if path.lstat().st_mtime < before:
                    path.unlink()


class GrowingFile:
    """A file to which whole entries are appended.

    What the disk refuses is kept in memory, and written before the next entry once there is room; nothing is
    raised. An entry is never there in part.
    """

    def __init__(self, path: Path, *, of_lines: bool = False) -> None:
        """Open `path` behind what it holds already; raises OSError where that cannot be.

        Args:
            path: the file.
            of_lines: each entry is a line. Half a line that a power cut left is ended, as the next one would
                be lost with it.
        """
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.fdopen(_open_file(path, _TO_APPEND), "ab", buffering=0)
        self._waiting: deque[bytes] = deque([b"\n"] if of_lines and not _ends_with_line(path) else [])
        self._reason = ""

    def append(self, entry: bytes) -> None:
        """Write `entry` behind those that wait."""
        self._waiting.append(entry)
        self.flush()

    def flush(self) -> str:
        """Try to write what waits; return why some of it still does, or ""."""
        before = self._reason
        try:
            while self._waiting:
                self._write(self._waiting[0])
                self._waiting.popleft()
            self._reason = ""
        except OSError as error:
            self._reason = error.strerror or type(error).__name__
        if self._reason and not before:
            logger.error("cannot write to %s: %s; kept until there is room", self.path, self._reason)
        elif before and not self._reason:
            logger.info("%s can be written to again; nothing is missing", self.path)
        return self._reason

    def waiting(self) -> list[bytes]:
        """The entries that are not on the disk."""
        return list(self._waiting)

    def close(self) -> None:
        """Write what the disk takes, and close."""
        self.flush()
        self._file.close()

    def _write(self, entry: bytes) -> None:
        """Append the whole entry, or nothing of it."""
        end = os.fstat(self._file.fileno()).st_size
        try:
            written = 0
            while written < len(entry):
                written += self._file.write(entry[written:])
        except OSError:
            with contextlib.suppress(OSError):
                self._file.truncate(end)
            raise


def _ends_with_line(path: Path) -> bool:
    """Whether a file is empty, or its last byte ends a line; also where it may not be read."""
    try:
        with open_file(path) as file:
            return file.seek(0, os.SEEK_END) == 0 or os.pread(file.fileno(), 1, file.tell() - 1) == b"\n"
    except OSError:
        return True


def _flush_folder(folder: Path) -> None:
    """Make a rename in `folder` outlast a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
