"""The columns made from annotation files: where they lie, and when they may be used again.

The file of columns is called after the SHA-256 of the annotation files and has it in its header, so that it
can stand for no other content. Two things are checked on every opening, by every process that opens the set:

- Which content the annotation files have. They are not read for that while their stamp is the one that was
  noted with the hash: size, times of change and inode. A program can set the time of modification back, but
  not that of the last change of any kind, so that another content of the same size and time is noticed. A
  stamp is noted only when it is older than the clock's grain: two writes within that look alike. Wherever the
  stamp differs, as in a copy, the files are read and hashed. (Reading always would cost COCO's 450 MB half a
  second, and Objects365's 6 GB seven.)
- That the columns are whole: types and sizes against the file's before anything is mapped, a checksum over
  all of it, which columns there are and how long. Anything else is made anew.

Processes that are handed an open set (workers, the one that scores) map the same file without the checksum.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lgd.data.columns import Array, open_columns, write_columns
from lgd.data.errors import DataError
from lgd.data.folder import folders, make_folder, read_note, write_note
from lgd.data.limits import MAX_ANNOTATION_BYTES, check_file
from lgd.data.schema import check_columns

logger = logging.getLogger(__name__)

FORMAT_VERSION = 7
"""Counts up with every change of the columns or of the rules that make them."""

SETTLED = 2_000_000_000
"""Nanoseconds after which a file's time can be trusted: two writes within a tick of the clock look alike."""

_LONGEST_NAME = 100
"""Bytes of an annotation file's name that the names of what is kept about it begin with."""

Columns = tuple[Mapping[str, Array], Mapping[str, Any]]
"""Arrays and metadata, as `write_columns` takes them."""


def cached_columns(
    json_path: Path,
    build: Callable[[str], Columns],
    *,
    parts: Sequence[str | Path] = (),
    max_part_bytes: int = MAX_ANNOTATION_BYTES,
    pictures: Sequence[str | Path] = (),
    describe: Callable[[], str] = str,
    split: str = "",
) -> Path:
    """Return the file of columns for the content of `json_path`, making it where there is none.

    Several processes may do this at once: each writes a file of its own and renames it.

    Args:
        json_path: the annotation file, or a folder of such; the cache is called after it and lies in a folder
            beside the file or files.
        build: makes arrays and metadata, given the content's hash.
        parts: more files that the annotations are spread over, if any; all of them where `json_path` is a
            folder.
        max_part_bytes: of one of these.
        pictures: files whose sizes in pixels are in the columns.
        describe: says what else the columns hang on, as those sizes; asked only where a file has changed.
        split: which of the sets that `json_path` stands for.

    Raises:
        DataError: a file cannot be read, is too large or changes meanwhile, or no folder for the cache can be
            written to.
    """
    sources = tuple(parts) if json_path.is_dir() else (json_path, *parts)
    json_path = _anchor(json_path)
    name = _short_name(json_path) + (f".{_short_hash(split)}" if split else "")
    stamp = _stamp(sources, max_part_bytes, pictures)
    known = _recall(json_path, name, stamp)
    path = _find(json_path, name, known) if known else None
    if path is not None:
        return path
    description = describe()
    content_hash = _content_hash(sources, description)
    if content_hash != known:
        path = _find(json_path, name, content_hash)
    if path is None:
        columns = build(content_hash)
        if _content_hash(sources, description) != content_hash:
            raise DataError(f"{json_path} changed while it was read; start again")
        path = _store(json_path, name, content_hash, columns)
    if stamp is not None:
        _note(path.parent, name, stamp, content_hash)
    return path


def derived_columns(json_path: Path, what: str, content_hash: str, build: Callable[[], Columns]) -> Path:
    """Return the file of columns that are made from other columns, making it where there is none.

    Args:
        json_path: the annotation file that it is kept beside; of several sets the first's.
        what: a word that the file's name begins with.
        content_hash: SHA-256 that stands for all that the columns are made from.
        build: makes arrays and metadata.

    Raises:
        DataError: no folder for the cache can be written to.
    """
    json_path = _anchor(json_path)
    path = _find(json_path, what, content_hash)
    return path if path is not None else _store(json_path, what, content_hash, build())


def _anchor(json_path: Path) -> Path:
    """What the cache lies beside: the file, or something in the folder of files."""
    return json_path / json_path.name if json_path.is_dir() else json_path


def _short_name(json_path: Path) -> str:
    """The file's name as far as it leaves room for what comes behind it."""
    return os.fsencode(json_path.name)[:_LONGEST_NAME].decode(errors="replace")


def _short_hash(split: str) -> str:
    return hashlib.sha256(os.fsencode(split)).hexdigest()[:8]


def _stamp(sources: Sequence[str | Path], max_part_bytes: int, pictures: Sequence[str | Path]) -> str | None:
    """What tells the files from changed ones without reading them; None where one has just been written."""
    try:
        # A file that is opened is asked for at its server; what is known of the others may be seconds old.
        Path(sources[0]).open("rb").close()
        states = list(map(os.stat, sources))
        all_states = [*states, *map(os.stat, pictures)]
    except OSError as error:
        raise DataError(f"cannot read {error.filename}: {error.strerror}") from error
    for source, state in zip(sources, states, strict=True):
        check_file(source, state, max_part_bytes if source is not sources[0] else MAX_ANNOTATION_BYTES)
    if time.time_ns() - max(state.st_ctime_ns for state in all_states) < SETTLED:
        return None
    numbers = [(state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino) for state in all_states]
    return hashlib.sha256(repr(numbers).encode()).hexdigest()


def _content_hash(sources: Sequence[str | Path], description: str) -> str:
    """SHA-256 of a file's content; of several or with a description, of their names and hashes and this."""
    hashes = []
    for source in map(Path, sources):
        try:
            with source.open("rb") as file:
                hashes.append(hashlib.file_digest(file, "sha256").hexdigest())
        except OSError as error:
            raise DataError(f"cannot read {source}: {error.strerror}") from error
    if len(hashes) == 1 and not description:
        return hashes[0]
    names = (os.fsencode(Path(source).name) for source in sources)
    lines = (name + f" {content}".encode() for name, content in zip(names, hashes, strict=True))
    more = [description.encode()] if description else []
    return hashlib.sha256(b"\n".join([*lines, *more])).hexdigest()


def _recall(json_path: Path, name: str, stamp: str | None) -> str | None:
    """The hash that was noted with the stamp, if any."""
    for folder in folders(json_path) if stamp else ():
        note = read_note(folder / f"{name}.lgd-source")
        if note.get("stamp") == stamp and re.fullmatch("[0-9a-f]{64}", str(note.get("content_hash"))):
            return str(note["content_hash"])
    return None


def _note(folder: Path, name: str, stamp: str, content_hash: str) -> None:
    with contextlib.suppress(OSError):  # costs reading the files on every start
        write_note(folder / f"{name}.lgd-source", {"stamp": stamp, "content_hash": content_hash})


def _file_name(name: str, content_hash: str) -> str:
    return f"{name}.{content_hash[:16]}.v{FORMAT_VERSION}.lgd-index"


def _find(json_path: Path, name: str, content_hash: str) -> Path | None:
    """The file of these columns, if it is there and whole."""
    for folder in folders(json_path):
        path = folder / _file_name(name, content_hash)
        try:
            columns, metadata = open_columns(path)
            check_columns(columns, metadata)
            if metadata["content_hash"] != content_hash:
                raise ValueError("it is of another content")
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError) as error:
            logger.warning("%s cannot be used and is made anew: %s", path, error)
            continue
        return path
    return None


def _store(json_path: Path, name: str, content_hash: str, columns: Columns) -> Path:
    problems = []
    for folder in folders(json_path):
        try:
            make_folder(folder)
            write_columns(folder / _file_name(name, content_hash), *columns)
        except OSError as error:
            problems.append(f"{folder}: {error.strerror}")
        else:
            return folder / _file_name(name, content_hash)
    raise DataError(
        f"cannot cache the annotations of {json_path} ({'; '.join(problems)}); "
        "set XDG_CACHE_HOME to a folder that can be written to"
    )
