"""Where the columns made from an annotation file lie, and when they may be used again."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lgd.data.columns import Array, Stamp, open_columns, read_stamp, renew_stamp, write_columns
from lgd.data.errors import DataError

FORMAT_VERSION = 3
"""Counts up with every change of the columns or of the rules that make them."""

SETTLED = 2_000_000_000
"""Nanoseconds after which a file's time can be trusted: two writes within a tick of the clock look alike."""

Columns = tuple[Mapping[str, Array], Mapping[str, Any]]
"""Arrays and metadata, as `write_columns` takes them."""

NO_STAMP = Stamp(-1, -1)
"""Equal to no file's."""


def cached_columns(json_path: Path, build: Callable[[str], Columns], *, parts: Sequence[Path] = ()) -> Path:
    """Return the file of columns for the content of `json_path`, making it where there is none.

    A cache is known by the source's size and time; where these differ, by the source's SHA-256. Several
    processes may do this at once: each writes a file of its own and renames it.

    Args:
        json_path: the annotation file; the cache is called after it and lies beside it.
        build: makes arrays and metadata, given the content's hash.
        parts: more files that the annotations are spread over, if any.

    Raises:
        DataError: no folder for the cache can be written to.
    """
    sources = (json_path, *parts)
    stamp = Stamp.of_all(sources)
    for folder in _folders(json_path):
        for path in _caches(folder, json_path.name):
            if read_stamp(path) == stamp and _is_whole(path):
                return path
    content_hash = _content_hash(sources)
    if time.time_ns() - stamp.modified < SETTLED:
        stamp = NO_STAMP
    return named_columns(
        json_path, f"{json_path.name}.{content_hash[:16]}", stamp, lambda: build(content_hash)
    )


def _content_hash(sources: Sequence[Path]) -> str:
    """SHA-256 of a file's content; of several, of their names and hashes."""
    hashes = []
    for source in sources:
        with source.open("rb") as file:
            hashes.append(hashlib.file_digest(file, "sha256").hexdigest())
    if len(hashes) == 1:
        return hashes[0]
    lines = (f"{source.name} {content}" for source, content in zip(sources, hashes, strict=True))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def named_columns(json_path: Path, name: str, stamp: Stamp, build: Callable[[], Columns]) -> Path:
    """Return the file of columns of this name, beside `json_path` or in the user's cache folder.

    Args:
        json_path: the annotation file.
        name: tells contents apart.
        stamp: of the source as it is now.
        build: makes arrays and metadata where the file is not there.

    Raises:
        DataError: no folder for the cache can be written to.
    """
    name += _suffix()
    for folder in _folders(json_path):
        if _is_whole(folder / name):
            with contextlib.suppress(OSError):
                renew_stamp(folder / name, stamp)
            return folder / name
    arrays, metadata = build()
    return _store(json_path, name, arrays, metadata, stamp)


def _suffix() -> str:
    return f".v{FORMAT_VERSION}.lgd-index"


def _folders(json_path: Path) -> tuple[Path, Path]:
    """Where caches may lie: beside the JSON, and in the user's cache folder under the name of the JSON's."""
    beside = json_path.parent
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return beside, user / "lgd" / hashlib.sha256(str(beside.resolve()).encode()).hexdigest()[:16]


def _caches(folder: Path, json_name: str) -> list[Path]:
    """The caches in `folder` of files called `json_name`."""
    if not folder.is_dir():
        return []
    names = (entry.name for entry in os.scandir(folder))
    return sorted(
        folder / name for name in names if name.startswith(f"{json_name}.") and name.endswith(_suffix())
    )


def _is_whole(path: Path) -> bool:
    """Whether `path` is there and can be mapped."""
    try:
        open_columns(path)
    except (OSError, ValueError):
        return False
    return True


def _store(
    json_path: Path, name: str, arrays: Mapping[str, Array], metadata: Mapping[str, Any], stamp: Stamp
) -> Path:
    beside, user = _folders(json_path)
    # A folder without a single write bit is to stay as it is, even where the superuser could write to it.
    if beside.stat().st_mode & 0o222:
        with contextlib.suppress(OSError):
            write_columns(beside / name, arrays, metadata, stamp)
            return beside / name
    try:
        user.mkdir(parents=True, exist_ok=True)
        write_columns(user / name, arrays, metadata, stamp)
    except OSError as error:
        raise DataError(
            f"cannot cache the annotations of {json_path}: {beside} is read-only or full, and {user}: "
            f"{error.strerror}; set XDG_CACHE_HOME to a folder that can be written to"
        ) from error
    return user / name
