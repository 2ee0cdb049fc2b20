"""What a user points at, and the picture and video files that are meant: folders, globs, lists of files."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from lgd.data.errors import DataError
from lgd.files import at_home

PICTURES = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".mpo",
        ".png",
        ".webp",
        ".tif",
        ".tiff",
        ".bmp",
        ".dib",
        ".gif",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
        ".jp2",
        ".j2k",
        ".avif",
    ]
)
VIDEOS = frozenset(
    [
        ".mp4",
        ".m4v",
        ".mov",
        ".mkv",
        ".webm",
        ".avi",
        ".mpg",
        ".mpeg",
        ".wmv",
        ".flv",
        ".3gp",
        ".ts",
        ".mts",
        ".m2ts",
    ]
)
"""Endings by which folders are searched; a file that is named itself may have any."""

_LIST = ".txt"


@dataclass(frozen=True)
class Source:
    """A file to detect on.

    Attributes:
        path: the file.
        name: what is written about it is called after this, "cam/a.jpg": a path without "..", of one source
            alone.
    """

    path: Path
    name: str

    @property
    def is_video(self) -> bool:
        """Whether it holds many pictures."""
        return self.path.suffix.lower() in VIDEOS


def find_sources(texts: Sequence[str | os.PathLike[str]], leave_out: Path | None = None) -> list[Source]:
    """Find the files that are meant; every file once.

    Args:
        texts: of each a file; a folder, with all in it and below it that ends as pictures and videos do; a
            glob (`**` goes through folders); or FILE.txt, a path a line, relative to that file.
        leave_out: a folder that is not searched: one's own output.

    Returns:
        The files, those of a folder or a glob in alphabetical order. Names are relative to a folder,
        after its own name where there are several texts.

    Raises:
        DataError: one of them means no file.
    """
    found: dict[Path, str] = {}
    for text in [os.fspath(text) for text in texts]:
        before = len(found)
        for path, name in _find(text, leave_out, alone=len(texts) == 1):
            found.setdefault(path, name)
        if len(found) == before and not any(path in found for path, _ in _find(text, leave_out, alone=True)):
            raise DataError(f"{text}: there are no pictures or videos in it")
    taken: set[str] = set()
    return [Source(path, _unique(name, taken)) for path, name in found.items()]


def means_one_picture(text: str | os.PathLike[str]) -> bool:
    """Whether a text names one picture's file, and not a number of them, however many these are."""
    path = at_home(text)
    ending = path.suffix.lower()
    return not path.is_dir() and ending not in VIDEOS and ending != _LIST and not _is_glob(os.fspath(text))


def _find(text: str, leave_out: Path | None, *, alone: bool) -> Iterator[tuple[Path, str]]:
    """Yield paths and names."""
    if not text:
        raise DataError("a picture's path is empty; give a file or a folder, . for the one that you are in")
    if "://" in text:
        raise DataError(f"{text}: pictures are not fetched from addresses; give a file or a folder")
    path = at_home(text)
    if path.is_dir():
        prefix = PurePosixPath() if alone else PurePosixPath(path.resolve().name)
        for inside in _walk(path, leave_out):
            yield inside, str(prefix / inside.relative_to(path).as_posix())
    elif _is_glob(text):
        base = _fixed_part(path)
        for match in sorted(glob.glob(str(path), recursive=True)):  # noqa: PTH207 (of an absolute pattern too)
            if Path(match).is_file():
                yield Path(match), Path(match).relative_to(base).as_posix()
    elif not path.exists():
        raise DataError(f"{text}: no such file or folder")
    elif path.suffix.lower() == _LIST:
        for line in _lines(path):
            yield path.parent / at_home(line), _name_of(line)
    else:
        yield path, path.name


def _is_glob(text: str) -> bool:
    return glob.has_magic(text) and not at_home(text).exists()


def _fixed_part(pattern: Path) -> Path:
    """The folder that a glob starts from."""
    fixed = Path()
    for part in pattern.parts[:-1]:
        if glob.has_magic(part):
            break
        fixed /= part
    return fixed


def _walk(folder: Path, leave_out: Path | None) -> Iterator[Path]:
    """Yield what ends as pictures and videos do, going into each folder once, whatever links lead there."""
    seen = set() if leave_out is None else {leave_out.resolve()}
    for place, folders, files in os.walk(folder, followlinks=True):
        real = Path(place).resolve()
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        for file in sorted(files):
            path = Path(place) / file
            if path.suffix.lower() in PICTURES | VIDEOS and not file.startswith("."):
                yield path


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text in UTF-8"
        raise DataError(f"{path}: cannot be read as a list of files: {reason}") from None
    return [line.strip() for line in lines if line.strip()]


def _name_of(line: str) -> str:
    path = at_home(line)
    return path.name if path.is_absolute() or ".." in path.parts else path.as_posix()


def _unique(name: str, taken: set[str]) -> str:
    """The name, or one like it that is not taken yet."""
    path, number = PurePosixPath(name), 1
    while name in taken:
        number += 1
        name = str(path.with_name(f"{path.stem}-{number}{path.suffix}"))
    taken.add(name)
    return name
