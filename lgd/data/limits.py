"""What files of strangers may hold: how much, and words for what they hold instead.

A limit is there where something beyond it makes no sense, and would end in an overflow, in memory that is not
there, or in hours of work.
"""

from __future__ import annotations

import json
import os
import reprlib
import stat
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lgd.data.errors import DataError

MAX_SIDE = 2**20
"""Pixels of a side of an image, and how far the corners of a mask may lie from the image's."""

MAX_PIXELS = 2**31 - 1
"""Pixels of an image: as many as the lengths of a mask's runs can count."""

MAX_COORDINATE = 2**31
"""Pixels, of a box's position and sides."""

MAX_ANNOTATION_BYTES = 2**35
"""Of an annotation file or a list of images."""

MAX_XML_BYTES = 2**22
"""Of one image's XML: more than ten thousand objects."""

MAX_NAME = 1000
"""Letters of the name of a class."""

PICTURE_SUFFIXES = {
    ".avif", ".bmp", ".dng", ".gif", ".heic", ".jfif", ".jpe", ".jpeg", ".jpg", ".mpo", ".pbm", ".pgm",
    ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp",
}  # fmt: skip
"""Endings of what is taken for a picture where none is named; one that cannot be read is an error then."""

_SHORT = reprlib.Repr()
_SHORT.maxstring = 200


def is_file(path: Path) -> bool:
    """Whether there is such a file; raises DataError where that cannot be told, as of a name too long."""
    return _tell(path, path.is_file)


def is_folder(path: Path) -> bool:
    """Whether there is such a folder; raises DataError where that cannot be told."""
    return _tell(path, path.is_dir)


def _tell(path: Path, question: Callable[[], bool]) -> bool:
    try:
        return question()
    except OSError as error:
        raise DataError(f"cannot read {shown(str(path))}: {error.strerror}") from error


def read_text(path: Path, limit: int = MAX_ANNOTATION_BYTES) -> str:
    """Read a file of UTF-8 text.

    Raises:
        DataError: it cannot be read, is larger than `limit` bytes, or is no such text.
    """
    try:
        return read_bytes(path, limit).decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error


def read_bytes(path: Path, limit: int) -> bytes:
    """Read a file.

    Raises:
        DataError: it cannot be read, or is larger than `limit` bytes.
    """
    try:
        with path.open("rb") as file:
            check_file(path, os.fstat(file.fileno()), limit)
            return file.read()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error


def check_file(path: str | Path, status: os.stat_result, limit: int) -> None:
    """See that it is a file of at most `limit` bytes; raises DataError where it is not."""
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{path} is no regular file")
    if status.st_size > limit:
        raise DataError(f"{path} is of {status.st_size} bytes; at most {limit} are read")


def parse_json(text: str | bytes) -> Any:
    """Parse JSON of any origin.

    Raises:
        ValueError: it is not whole JSON, is nested too deeply, has a number of thousands of digits, or names
            a key twice; says in one line which.
    """
    try:
        return json.loads(text, object_pairs_hook=_distinct_keys)
    except json.JSONDecodeError as error:
        where = f"at line {error.lineno}, column {error.colno}"
        raise ValueError(f"is not whole JSON: {error.msg} {where}") from error
    except RecursionError as error:
        raise ValueError("is JSON that is nested too deeply") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 text: {error.reason} at byte {error.start}") from error
    except _TwiceError as error:
        raise ValueError(f"is JSON with the key {shown(error.args[0])} twice in an object") from error
    except ValueError as error:  # the interpreter's guard against numbers that take hours to convert
        raise ValueError("is JSON with a number of thousands of digits") from error


class _TwiceError(Exception):
    """A key that occurs twice."""


def _distinct_keys(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise _TwiceError(Counter(key for key, _ in pairs).most_common(1)[0][0])
    return content


def shown(value: Any) -> str:
    """Say what a value is, in a few characters of one line."""
    return _SHORT.repr(value)


def plain(text: str) -> str:
    """Say a text that is a name or should be one, in a few characters of one line."""
    return shown(text)[1:-1]


def name_some(names: Sequence[Any], say: Callable[[Any], str] = str, *, at_most: int = 5) -> str:
    """Name the first few of many ids or files, and how many there are beyond them."""
    more = f" and {len(names) - at_most} more" if len(names) > at_most else ""
    return ", ".join(map(say, names[:at_most])) + more


def is_printable(text: str) -> bool:
    """Whether a text is one line that can be written as UTF-8: no control characters, no half characters."""
    return text.isprintable() or not any(
        unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in text
    )


def is_name(value: Any) -> bool:
    """Whether a value can be the name of a class."""
    return (
        isinstance(value, str) and 0 < len(value) <= MAX_NAME and not value.isspace() and is_printable(value)
    )


def as_flag(value: Any) -> bool | None:
    """What 0, 1, true or false says, also as text; None where a value is none of them."""
    if isinstance(value, str):
        return {"0": False, "1": True, "false": False, "true": True}.get(value.strip().lower())
    return bool(value) if type(value) in (int, float, bool) and value in (0, 1) else None


def leads_outside(file_name: str) -> bool:
    r"""Whether a path may leave the folder that it is relative to: `..`, `/...`, `\...` or `C:...`."""
    parts = file_name.replace("\\", "/").split("/")
    has_drive = len(parts[0]) > 1 and parts[0][0].isascii() and parts[0][0].isalpha() and parts[0][1] == ":"
    return ".." in parts or parts[0] == "" or has_drive


def check_size(height: int, width: int) -> str | None:
    """Say what is wrong with the size of an image, in pixels; None where nothing is."""
    if height <= 0 or width <= 0:
        return "is not positive"
    if max(height, width) > MAX_SIDE or height * width > MAX_PIXELS:
        return f"is beyond {MAX_SIDE} pixels a side or {MAX_PIXELS} in all"
    return None
