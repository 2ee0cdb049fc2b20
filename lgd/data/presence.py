"""Whether the images that an annotation file lists are there.

Listing a folder of millions of files takes seconds, on a shared disk minutes. So a folder that was found to
hold all of them is remembered beside the columns with its times, which change with every file that is added,
removed or renamed: while they are the same it is not listed again.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from lgd.data.cache import SETTLED
from lgd.data.errors import DataError
from lgd.data.folder import read_note, write_note
from lgd.data.index import AnnotationIndex
from lgd.data.limits import leads_outside, name_some, plain

_Times = dict[str, list[int]]
"""Of each folder below the image folder: when its content changed, and when anything of it did (which no
program can set), nanoseconds."""


def check_images_present(index: AnnotationIndex) -> None:
    """See that all images are there; raises DataError where some are not."""
    absent = find_absent(index)
    if absent:
        raise DataError(say_absent(index, absent))


def find_absent(index: AnnotationIndex) -> list[int]:
    """Find the images that are not below the image folder under the names that they are listed with.

    The names are compared with what each folder holds, unless these folders are known to be whole. What lies
    outside of the image folder is not looked at, and absent.

    Raises:
        DataError: a folder cannot be listed.
    """
    known = _recall(index)
    if known and known == _times(index, known):
        return []
    names = index.file_names()
    folders = {name.rpartition("/")[0] for name in names}
    folders = {folder for folder in folders if not folder or not leads_outside(folder)}
    begin, times = time.time_ns(), _times(index, folders)
    present = set(itertools.chain.from_iterable(_list(index, folder) for folder in folders))
    if not present.issuperset(names):
        return [i for i, name in enumerate(names) if name not in present]
    if all(begin - max(each, default=begin) > SETTLED for each in times.values()):
        _remember(index, times)
    return []


def say_absent(index: AnnotationIndex, absent: Sequence[int]) -> str:
    """Say which images are absent."""
    named = name_some(
        absent, lambda i: f"{plain(index.file_name(i))} (image {index.image_ids[i]})", at_most=3
    )
    return f"{index.json_path} lists images that are not in {index.image_dir}: {named}"


def names_in(folder: Path) -> set[str]:
    """Return the names of what lies in `folder`; none where there is no such folder.

    Raises:
        DataError: there is one that cannot be listed.
    """
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries}
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP):
            return set()
        raise DataError(f"cannot list {folder}: {error.strerror}") from error


def _list(index: AnnotationIndex, folder: str) -> Iterable[str]:
    """The paths below the image folder of what lies in `folder`."""
    names = names_in(index.image_dir / folder)
    return (f"{folder}/{name}" for name in names) if folder else names


def _times(index: AnnotationIndex, folders: Iterable[str]) -> _Times:
    return {folder: list(_times_of(index.image_dir / folder)) for folder in folders}


def _times_of(folder: Path) -> Iterator[int]:
    with contextlib.suppress(OSError, ValueError):  # the latter of a name that no folder can have
        status = folder.stat()
        yield from (status.st_mtime_ns, status.st_ctime_ns)


def _memory(index: AnnotationIndex) -> Path:
    """The file that remembers whole folders: the columns' place stands for what the annotations list."""
    return index.cache_path.with_suffix(".lgd-present")


def _key(index: AnnotationIndex) -> str:
    """What stands for the image folder: no path, which would be this machine's."""
    return hashlib.sha256(os.fsencode(index.image_dir.resolve())).hexdigest()[:16]


def _recall(index: AnnotationIndex) -> _Times | None:
    times = read_note(_memory(index)).get(_key(index))
    return times if isinstance(times, dict) else None


def _remember(index: AnnotationIndex, times: _Times) -> None:
    content = read_note(_memory(index)) | {_key(index): times}
    with contextlib.suppress(OSError):  # a folder that cannot be written to costs a listing on every start
        write_note(_memory(index), content)
