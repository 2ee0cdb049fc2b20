"""The files of a folder and of those below it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from lgd.data.limits import PICTURE_SUFFIXES
from lgd.data.presence import names_in


def files_below(
    folder: Path,
    takes: Callable[[str], bool],
    *,
    deep: bool = True,
    seen: frozenset[tuple[int, int]] = frozenset(),
) -> Iterator[Path]:
    """Go through the files in a folder and then those of each folder in it, by name.

    Hidden ones are left out. Links to folders are followed, but not round and round.

    Args:
        folder: where to begin; there may be none.
        takes: says by a file's name whether it is meant.
        deep: go into folders, too.
        seen: the folders that this one is in.

    Raises:
        DataError: a folder cannot be listed.
    """
    names = sorted(name for name in names_in(folder) if not name.startswith("."))
    yield from (folder / name for name in names if takes(name))
    for name in names if deep else ():
        path = folder / name
        if takes(name) or is_picture(name) or not path.is_dir():
            continue
        state = path.stat()
        if (state.st_dev, state.st_ino) not in seen:
            yield from files_below(path, takes, seen=seen | {(state.st_dev, state.st_ino)})


def folders_in(folder: Path) -> list[str]:
    """Return the names of the folders in a folder, hidden ones left out; none where there is no such folder.

    Raises:
        DataError: it cannot be listed.
    """
    names = (name for name in names_in(folder) if not name.startswith("."))
    return sorted(name for name in names if not is_picture(name) and (folder / name).is_dir())


def is_picture(name: str) -> bool:
    """Whether a file is taken for a picture by its name's ending."""
    return Path(name).suffix.lower() in PICTURE_SUFFIXES
