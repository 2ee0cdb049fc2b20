"""The folder `.lgd` beside an annotation file: what is kept there can be made again at any time.

It holds no path of this machine, and keeps itself out of people's commits.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from lgd.files import write_text_atomically

_NAME = ".lgd"
_MAX_NOTE_BYTES = 2**26


def folders(annotation_file: Path) -> list[Path]:
    """Where things about an annotation file may lie: beside it, and in the user's cache folder.

    The latter is for folders that cannot be written to; there each has a folder called after its path's hash.
    """
    beside = annotation_file.parent
    user = _user_cache()
    if user is None:
        return [beside / _NAME]
    return [beside / _NAME, user / "lgd" / hashlib.sha256(os.fsencode(beside.resolve())).hexdigest()[:16]]


def _user_cache() -> Path | None:
    """The user's cache folder; None where the machine does not know the user, as in some containers."""
    chosen = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if chosen.is_absolute():
        return chosen
    try:
        return Path.home() / ".cache"
    except RuntimeError:
        return None


def make_folder(folder: Path) -> None:
    """Make one of `folders` where it is not there yet.

    Raises:
        OSError: it cannot be written to, or is not meant to.
    """
    if folder.is_symlink():  # of an archive, perhaps: what is kept would come to lie anywhere
        raise OSError(errno.ELOOP, "is a symbolic link", str(folder))
    if folder.name != _NAME:
        folder.mkdir(parents=True, exist_ok=True)
        return
    # A folder without a single write bit is to stay as it is, even where the superuser could write to it.
    if not (folder if folder.exists() else folder.parent).stat().st_mode & 0o222:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(folder))
    folder.mkdir(exist_ok=True)
    if not (folder / ".gitignore").exists():
        write_text_atomically(folder / ".gitignore", "*\n")


@contextmanager
def open_regular(path: Path) -> Iterator[BinaryIO]:
    """Open a file to read; one that others may have put there, so that it might be a pipe or a device.

    Raises:
        OSError: there is none, or it cannot be read.
        ValueError: it is something else than a file.
    """
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("it is no regular file")
        yield file


def read_note(path: Path) -> dict[str, Any]:
    """Read what `write_note` wrote; nothing where it is absent or damaged."""
    try:
        with open_regular(path) as file:
            content = json.loads(file.read(_MAX_NOTE_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def write_note(path: Path, content: dict[str, Any]) -> None:
    """Keep something that JSON can hold, for as long as nobody deletes it.

    Raises:
        OSError: the folder cannot be written to.
    """
    make_folder(path.parent)
    write_text_atomically(path, json.dumps(content))
