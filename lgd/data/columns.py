"""A file of named numpy arrays that is memory-mapped: every process that opens it shares one copy.

Layout: magic (8 bytes), CRC-32 of all that follows (uint32), length of the header (int64), header (JSON: the
arrays' types, shapes and offsets, and the caller's metadata), arrays at multiples of 64 bytes.

The checksum finds damage: any flipped bit, any stretch that was lost. Against malice stands that the arrays
are booleans, integers and floats, which lie within the file and mean nothing but numbers.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from lgd.data.folder import open_regular
from lgd.files import replacing

Array = npt.NDArray[Any]

_MAGIC = b"LGDCOLS2"
_CHECKSUM = struct.Struct("<I")
_LENGTH = struct.Struct("<q")
_CHECKED = len(_MAGIC) + _CHECKSUM.size
"""Where what the checksum covers begins, bytes from the start of the file."""
_HEADER = _CHECKED + _LENGTH.size
_ALIGNMENT = 64
_MAX_HEADER_BYTES = 2**26
_READ_AT_ONCE = 2**20

_TYPES = {dtype.str: dtype for dtype in (np.dtype(code).newbyteorder("<") for code in "?bBhHiIqQefd")}
"""What arrays may be of: never objects, texts or records."""


def write_columns(path: Path, arrays: Mapping[str, Array], metadata: Mapping[str, Any]) -> None:
    """Write `arrays` to `path` so that other processes see the whole file or none of it.

    Args:
        path: the file to make; replaced where it exists.
        arrays: columns by name: booleans, integers or floats.
        metadata: anything JSON can hold.

    Raises:
        ValueError: an array is of another type.
        OSError: the folder cannot be written to, or the disk is full; nothing is left behind.
    """
    directory, end = {}, 0
    for name, array in arrays.items():
        if array.dtype.str not in _TYPES:
            raise ValueError(f"column {name} is of {array.dtype}, not of booleans, integers or floats")
        directory[name] = (array.dtype.str, array.shape, end)
        end += array.nbytes + -array.nbytes % _ALIGNMENT
    header = json.dumps({"arrays": directory, "end": end, "metadata": metadata}).encode()
    header += b" " * (-(_HEADER + len(header)) % _ALIGNMENT)
    checksum = 0
    with replacing(path) as file:
        file.write(_MAGIC + _CHECKSUM.pack(0))
        for piece in (_LENGTH.pack(len(header)), header, *_pieces(arrays)):
            file.write(piece)
            checksum = zlib.crc32(piece, checksum)
        file.seek(len(_MAGIC))
        file.write(_CHECKSUM.pack(checksum))


def _pieces(arrays: Mapping[str, Array]) -> Iterator[bytes | memoryview]:
    """The arrays' bytes, each filled up to a multiple of the alignment."""
    for array in arrays.values():
        if array.size:
            yield np.ascontiguousarray(array).data.cast("B")
            yield bytes(-array.nbytes % _ALIGNMENT)


def open_columns(path: Path, *, verify: bool = True) -> tuple[dict[str, Array], dict[str, Any]]:
    """Map the file at `path`.

    Nothing of it is mapped before it is known to lie within the file.

    Args:
        path: the file.
        verify: hold the content against its checksum. This reads the file once, through the system's cache
            and not through the mapping, so that no process has more memory for it.

    Returns:
        The arrays by name, read-only views of the mapping, and the metadata.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged or not such a file.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        header, base = _read_header(file, size)
        places = {name: _place(name, entry, size - base) for name, entry in header["arrays"].items()}
        if verify:
            _verify(file)
        content = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
    arrays = {
        name: np.ndarray(shape, dtype, buffer=content, offset=base + start)
        for name, (dtype, shape, start) in places.items()
    }
    return arrays, header["metadata"]


def _read_header(file: BinaryIO, size: int) -> tuple[dict[str, Any], int]:
    """The header, and where the arrays begin."""
    prefix = file.read(_HEADER)
    if len(prefix) < _HEADER or not prefix.startswith(_MAGIC):
        raise ValueError("it is no file of columns")
    (length,) = _LENGTH.unpack_from(prefix, _CHECKED)
    base = _HEADER + length
    if not 0 <= length <= min(_MAX_HEADER_BYTES, size - _HEADER):
        raise ValueError("its header is damaged")
    try:
        header = json.loads(file.read(length))
    except (ValueError, RecursionError) as error:
        raise ValueError("its header is damaged") from error
    keys = {"arrays": dict, "end": int, "metadata": dict}
    if not isinstance(header, dict) or not all(type(header.get(key)) is kind for key, kind in keys.items()):
        raise ValueError("its header is damaged")
    if base + header["end"] != size:
        raise ValueError(f"it is of {size} bytes, and should be of {base + header['end']}")
    return header, base


def _place(name: str, entry: Any, end: int) -> tuple[np.dtype[Any], tuple[int, ...], int]:
    """Type, shape and offset of an array that lies within `end` bytes."""
    if not isinstance(entry, list) or len(entry) != 3:
        raise ValueError(f"its header is damaged at {name}")
    kind, shape, start = entry
    dtype = _TYPES.get(kind) if isinstance(kind, str) else None
    if dtype is None:
        raise ValueError(f"column {name} is not of booleans, integers or floats")
    numbers = [start, *shape] if isinstance(shape, list) and len(shape) <= 8 else [None]
    if not all(type(number) is int and 0 <= number <= end for number in numbers):
        raise ValueError(f"column {name} has no shape or place that can be")
    if start + math.prod(shape) * dtype.itemsize > end:
        raise ValueError(f"column {name} reaches beyond the end of the file")
    return dtype, tuple(shape), start


def _verify(file: BinaryIO) -> None:
    file.seek(len(_MAGIC))
    (expected,) = _CHECKSUM.unpack(file.read(_CHECKSUM.size))
    buffer, checksum = memoryview(bytearray(_READ_AT_ONCE)), 0
    while count := file.readinto(buffer):  # type: ignore[attr-defined]
        checksum = zlib.crc32(buffer[:count], checksum)
    if checksum != expected:
        raise ValueError("its content does not have the checksum that it should")
