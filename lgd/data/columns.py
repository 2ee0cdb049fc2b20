"""A file of named numpy arrays that is memory-mapped: every process that opens it shares one copy.

Layout: magic (8 bytes), source stamp (2 x int64), length of the header (int64), header (JSON: the arrays'
types, shapes and offsets, and the caller's metadata), arrays at multiples of 64 bytes.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lgd.files import replacing

Array = npt.NDArray[Any]

_MAGIC = b"LGDCOLS1"
_PREFIX = struct.Struct("<8sqqq")
_STAMP = struct.Struct("<qq")
_ALIGNMENT = 64


class Stamp(NamedTuple):
    """What tells source files from changed ones without reading them.

    Attributes:
        size: bytes of a file; of several, a number that changes with each one's size or time.
        modified: nanoseconds since the epoch; of several, the latest.
    """

    size: int
    modified: int

    @classmethod
    def of(cls, path: Path) -> Stamp:
        """Return the stamp of the file at `path`."""
        status = path.stat()
        return cls(status.st_size, status.st_mtime_ns)

    @classmethod
    def of_all(cls, paths: Sequence[Path]) -> Stamp:
        """Return the stamp of the files at `paths`, at least one."""
        stamps = [cls.of(path) for path in paths]
        if len(stamps) == 1:
            return stamps[0]
        digest = hashlib.sha256(repr([tuple(stamp) for stamp in stamps]).encode()).digest()
        return cls(int.from_bytes(digest[:7], "little"), max(stamp.modified for stamp in stamps))


def write_columns(path: Path, arrays: Mapping[str, Array], metadata: Mapping[str, Any], stamp: Stamp) -> None:
    """Write `arrays` to `path` so that other processes see the whole file or none of it.

    Args:
        path: the file to make; replaced where it exists.
        arrays: contiguous columns by name.
        metadata: anything JSON can hold.
        stamp: of the source that the arrays were made from.

    Raises:
        OSError: the folder cannot be written to, or the disk is full; nothing is left behind.
    """
    directory, end = {}, 0
    for name, array in arrays.items():
        start = -(-end // _ALIGNMENT) * _ALIGNMENT
        directory[name] = (array.dtype.str, array.shape, start)
        end = start + array.nbytes
    header = json.dumps({"arrays": directory, "end": end, "metadata": metadata}).encode()
    base = _base(len(header))
    with replacing(path) as file:
        file.write(_PREFIX.pack(_MAGIC, *stamp, len(header)) + header)
        for name, array in arrays.items():
            file.seek(base + directory[name][2])
            file.write(np.ascontiguousarray(array).data.cast("B") if array.size else b"")
        file.truncate(base + end)


def read_stamp(path: Path) -> Stamp | None:
    """Return the stamp in the file at `path`; None where it is not such a file or cannot be read."""
    try:
        with path.open("rb") as file:
            prefix = file.read(_PREFIX.size)
    except OSError:
        return None
    if len(prefix) < _PREFIX.size or not prefix.startswith(_MAGIC):
        return None
    _, size, modified, _ = _PREFIX.unpack(prefix)
    return Stamp(size, modified)


def renew_stamp(path: Path, stamp: Stamp) -> None:
    """Record that a source of this stamp has the same content; raises OSError where `path` is read-only."""
    with path.open("r+b") as file:
        file.seek(len(_MAGIC))
        file.write(_STAMP.pack(*stamp))


def open_columns(path: Path) -> tuple[dict[str, Array], dict[str, Any]]:
    """Map the file at `path`.

    Returns:
        The arrays by name, read-only views of the mapping, and the metadata.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged or not such a file.
    """
    if read_stamp(path) is None:
        raise ValueError(f"{path} is not a file of columns")
    with path.open("rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    length = _PREFIX.unpack_from(content)[3]
    header = json.loads(content[_PREFIX.size : _PREFIX.size + length])
    base = _base(length)
    if len(content) < base + header["end"]:
        raise ValueError(f"{path} is cut short")
    arrays = {
        name: np.ndarray(tuple(shape), np.dtype(dtype), buffer=content, offset=base + start)
        for name, (dtype, shape, start) in header["arrays"].items()
    }
    return arrays, header["metadata"]


def _base(header_length: int) -> int:
    """Where the arrays begin, bytes from the start of the file."""
    return -(-(_PREFIX.size + header_length) // _ALIGNMENT) * _ALIGNMENT
