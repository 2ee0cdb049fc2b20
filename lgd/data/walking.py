"""The files of a folder and of those below it."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from lgd.data.errors import DataError
from lgd.data.limits import PICTURE_SUFFIXES, is_printable


def files_below(
    folder: Path,
    takes: Callable[[str], bool],
    *,
    deep: bool = True,
    seen: frozenset[tuple[int, int]] = frozenset(),
) -> Iterator[str]:
    """Go through the files in a folder and then those of each folder in it, by name.

    Hidden ones are left out. Links to folders are followed, but not round and round.

    Args:
        folder: where to begin; there may be none.
        takes: says by a file's name whether it is meant.
        deep: go into folders, too.
        seen: the folders that this one is in.

    Yields:
        Paths, as text: of a hundred thousand files that saves seconds.

    Raises:
        DataError: a folder cannot be listed.
    """
    entries = _entries(folder)
    prefix = os.path.join(folder, "")  # noqa: PTH118
    yield from (prefix + name for name, is_folder in entries if not is_folder and takes(name))
    below = [folder / name for name, is_folder in entries if is_folder and deep]
    if below:
        state = folder.stat()
        seen |= {(state.st_dev, state.st_ino)}
    for inner in below:
        state = inner.stat()
        if (state.st_dev, state.st_ino) not in seen:
            yield from files_below(inner, takes, seen=seen)


def folders_in(folder: Path) -> list[str]:
    """Return the names of the folders in a folder, sorted, without hidden ones and names of several lines.

    Raises:
        DataError: it cannot be listed.
    """
    return [name for name, is_folder in _entries(folder) if is_folder and is_printable(name)]


def files_in(folder: Path, ending: str) -> list[str]:
    """Return the names of the files in a folder that end so, sorted; with the same left out as `folders_in`.

    Raises:
        DataError: it cannot be listed.
    """
    names = [name for name, is_folder in _entries(folder) if not is_folder and is_printable(name)]
    return [name for name in names if name.lower().endswith(ending)]


def _entries(folder: Path) -> list[tuple[str, bool]]:
    """Names and whether they are folders, sorted; nothing where there is no such folder."""
    try:
        with os.scandir(folder) as entries:
            return sorted((each.name, each.is_dir()) for each in entries if not each.name.startswith("."))
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP):
            return []
        raise DataError(f"cannot list {folder}: {error.strerror}") from error


def is_picture(name: str) -> bool:
    """Whether a file is taken for a picture by its name's ending."""
    return os.path.splitext(name)[1].lower() in PICTURE_SUFFIXES  # noqa: PTH122
