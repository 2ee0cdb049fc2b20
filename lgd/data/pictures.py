"""Where the pictures of a set lie and how large they are, where its annotation file does not say.

Annotation tools write names of their own servers and machines, and now and then no size. What is found hangs
on the image folder, so that it is kept apart from the columns that are made from the annotation file alone.
Nothing outside of the image folder is looked at; links inside it are followed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import unquote

import numpy as np

from lgd.data.cache import Columns, derived_columns
from lgd.data.coco_images import Pictures
from lgd.data.errors import DataError, ImageError
from lgd.data.images import read_size
from lgd.data.index import AnnotationIndex
from lgd.data.limits import is_printable, name_some, plain, shown
from lgd.data.presence import find_absent, say_absent
from lgd.data.remarks import Remark
from lgd.notices import follow
from lgd.words import counted

_MAX_FILES = 10_000_000
"""Files below the image folder that are looked through for a name."""

_NUM_THREADS = 16
"""Reading headers waits for the disk or the network, not for the processor."""


def with_pictures(
    index: AnnotationIndex, root: Path | None, parse: Callable[[str, Pictures], Columns]
) -> AnnotationIndex:
    """Find pictures and sizes that the annotation file does not say.

    A name that is not below the image folder as written is looked for with backslashes as slashes; then as a
    path from the root, the annotation file's folder or one above the image folder; then by its bare name,
    which has to be there once.

    Args:
        index: the set as its annotation file says it; a size of 0 x 0 is one that it does not say.
        root: the folder of the whole set, if it is known.
        parse: makes the columns again, from their hash and what was found.

    Returns:
        The index with all pictures there; itself where nothing had to be found.

    Raises:
        DataError: a picture is absent, may be one of several, or cannot be read for its size.
    """
    absent, sizeless = find_absent(index), np.flatnonzero(index.heights == 0).tolist()
    if not absent and not sizeless:
        return index
    names, found = index.file_names(), {}
    if absent:
        found = _Finder(index, root).find(absent, names)
        names = [found.get(i, name) for i, name in enumerate(names)]
    bytes_of = {i: _file_size(index.image_dir / names[i]) for i in sizeless}
    facts = json.dumps([index.content_hash, sorted(found.items()), sorted(bytes_of.items())])
    content_hash = hashlib.sha256(facts.encode()).hexdigest()

    def build() -> Columns:
        sizes = _read_sizes(index, names, sizeless)
        return parse(content_hash, Pictures(names, sizes, _say(index, found, sizeless)))

    path = derived_columns(index.json_path, "pictures", content_hash, build)
    return index.on_columns(path)


def _file_size(path: Path) -> int:
    """Bytes of a file, which tell it from another picture of its name; -1 where it cannot be reached."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _read_sizes(
    index: AnnotationIndex, names: Sequence[str], places: Sequence[int]
) -> dict[int, tuple[int, int]]:
    """Heights and widths of the images at these places, from their pictures."""
    with ThreadPoolExecutor(_NUM_THREADS) as threads:
        try:
            found = threads.map(lambda i: read_size(index.image_dir / names[i]), places)
            sizes = list(follow(found, f"{index.name}: sizes of the pictures", len(places)))
        except ImageError as error:
            raise DataError(
                f"{index.json_path} does not say the size of {counted(len(places), 'image')}, and of one "
                f"it cannot be found: {error}"
            ) from error
    return dict(zip(places, sizes, strict=True))


def _say(index: AnnotationIndex, found: Mapping[int, str], sizeless: Sequence[int]) -> list[Remark]:
    remarks = []
    if found:
        named = name_some(
            list(found), lambda i: f"{plain(found[i])} for {shown(index.file_name(i))}", at_most=3
        )
        text = (
            f"{counted(len(found), 'file name is', 'file names are')} not in the image folder as "
            f"written; taken: {named}"
        )
        remarks.append(Remark("file_names_found", len(found), text))
    if sizeless:
        named = name_some([index.file_name(i) for i in sizeless], plain)
        text = (
            f"{counted(len(sizeless), 'image has', 'images have')} no size in the file: it is read "
            f"from the picture ({named})"
        )
        remarks.append(Remark("sizes_read", len(sizeless), text))
    return remarks


class _Finder:
    """Looks for pictures by names that are not theirs."""

    def __init__(self, index: AnnotationIndex, root: Path | None) -> None:
        self._index = index
        self._image_dirs = dict.fromkeys((_normal(index.image_dir), str(index.image_dir.resolve())))
        folders = [Path(folder) for folder in self._image_dirs]
        above = [parent for folder in folders for parent in folder.parents]
        bases = [*folders, *above, index.json_path.parent, *([root] if root else [])]
        self._bases = list(dict.fromkeys(map(_normal, bases)))
        self._read: dict[str, list[str]] = {}
        self._by_name: dict[str, list[str]] = {}
        for path in _walk(index.image_dir):
            self._by_name.setdefault(path.rpartition("/")[2], []).append(path)

    def find(self, absent: Sequence[int], names: Sequence[str]) -> dict[int, str]:
        """Of each absent image the path below the image folder; raises DataError where one has none."""
        found, lost, guessed = {}, [], {}
        for i in absent:
            path = next(filter(self._is_there, self._readings(names[i])), None)
            if path is None and (path := self._by_bare_name(i, names[i])) is not None:
                guessed[i] = path
            if path is None:
                lost.append(i)
            else:
                found[i] = path
        if lost:
            raise DataError(say_absent(self._index, lost))
        self._refuse_shared(guessed, [found.get(i, name) for i, name in enumerate(names)], names)
        return found

    def _is_there(self, path: str) -> bool:
        return path in self._by_name.get(path.rpartition("/")[2], ())

    def _readings(self, name: str) -> Iterator[str]:
        """What a name may mean below the image folder."""
        folder, slash, bare = name.replace("\\", "/").rpartition("/")
        for reading in self._folders(folder + slash):
            yield f"{reading}/{bare}" if reading else bare

    def _folders(self, folder: str) -> list[str]:
        """What a folder, "" or with a slash behind it, may mean; many names share one."""
        if folder not in self._read:
            paths = [folder] if folder.startswith("/") else [f"{base}/{folder}" for base in self._bases]
            inside = [
                path[len(image_dir) + 1 :]
                for path in map(os.path.normpath, paths)
                for image_dir in self._image_dirs
                if f"{path}/".startswith(f"{image_dir}/")
            ]
            self._read[folder] = list(dict.fromkeys(inside))
        return self._read[folder]

    def _by_bare_name(self, i: int, name: str) -> str | None:
        bare = re.split(r"[/\\]|^[A-Za-z]:", name)[-1]
        paths = self._by_name.get(bare) or self._by_name.get(unquote(bare), [])
        if len(paths) > 1:
            raise DataError(
                f"{self._index.json_path}: file_name of image {self._index.image_ids[i]}, {shown(name)}, may "
                f"be each of {name_some(sorted(paths), plain)} in {self._index.image_dir}; write it relative "
                "to that"
            )
        return paths[0] if paths else None

    def _refuse_shared(self, guessed: Mapping[int, str], paths: Sequence[str], names: Sequence[str]) -> None:
        """Raise where a picture that is told by its bare name has been listed under another name, too."""
        listed: dict[str, set[str]] = {}
        for path, name in zip(paths, names, strict=True):
            listed.setdefault(path, set()).add(name)
        for path in guessed.values():
            if len(listed[path]) > 1:
                raise DataError(
                    f"{self._index.json_path}: {name_some(sorted(listed[path]), shown)} would all be "
                    f"{plain(path)} in {self._index.image_dir}, the one picture of that name; write them "
                    "relative to that"
                )


def _normal(folder: Path) -> str:
    return os.path.normpath(folder.absolute())


def _walk(folder: Path) -> Iterator[str]:
    """The files below a folder, as paths from there; each folder once, also where links lead to it again."""
    seen: set[tuple[int, int]] = set()
    number = 0
    for place, folders, files in os.walk(folder, followlinks=True):
        status = Path(place).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        prefix = os.path.relpath(place, folder) + "/"
        for name in files:
            if is_printable(name):
                yield (prefix if prefix != "./" else "") + name
        number += len(files)
        if number > _MAX_FILES:
            raise DataError(
                f"{folder} has more than {_MAX_FILES} files to look for names in; write them relative"
            )
