"""Read `.pkl` weights without trusting them.

A pickle is a program. This reader lets it build dicts, lists, tuples, strings, numbers and numeric numpy
arrays, and nothing else: no class of the pickle's choice is looked up or called. The few names that numpy
itself writes (old and new module paths, protocols 2 to 5, Python 2's byte strings) are answered by stand-ins
of ours, which hold the bytes until the whole file is read.
"""

from __future__ import annotations

import pickle
import pickletools
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from lgd.weights.report import WeightsError

_NUMERIC_KINDS = "biuf"
_MEMO_WRITES = ("PUT", "BINPUT", "LONG_BINPUT")


@dataclass
class _PickledDtype:
    """A numpy dtype as the pickle describes it: a type code, then the byte order as its state."""

    code: str
    is_big_endian: bool = False

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.is_big_endian = state[1] == ">"

    def resolve(self) -> np.dtype[Any]:
        dtype = np.dtype(self.code)
        if dtype.kind not in _NUMERIC_KINDS:
            raise pickle.UnpicklingError(f"an array of type {self.code!r}, where only numbers are read")
        return dtype.newbyteorder(">" if self.is_big_endian else "<")


@dataclass
class _PickledArray:
    """A numpy array as the pickle describes it, filled by the state that follows its construction."""

    array: np.ndarray[Any, Any] | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        shape, dtype, is_fortran, data = state[-4:]  # an optional version number comes first
        self.array = _array_from_bytes(data, dtype, shape, "F" if is_fortran else "C")


def _to_bytes(data: object) -> bytes:
    if isinstance(data, str):  # Python 2 wrote its byte strings as text, which is read as Latin-1
        return data.encode("latin1")
    if not isinstance(data, bytes | bytearray):
        raise pickle.UnpicklingError(f"array data of type {type(data).__name__}")
    return bytes(data)


def _array_from_bytes(data: object, dtype: _PickledDtype, shape: Any, order: str) -> np.ndarray[Any, Any]:
    if not isinstance(dtype, _PickledDtype):
        raise pickle.UnpicklingError(f"an array type given as {type(dtype).__name__}")
    array = np.frombuffer(dtype=dtype.resolve(), buffer=_to_bytes(data))
    return array.reshape(shape, order="F" if order == "F" else "C")


def _begin_array(*_: object) -> _PickledArray:
    return _PickledArray()


def _begin_dtype(code: object, *_: object) -> _PickledDtype:
    return _PickledDtype(str(code))


def _array_from_buffer(
    data: object, dtype: _PickledDtype, shape: Any, order: str, *_: object
) -> _PickledArray:
    if order not in ("C", "F"):
        raise pickle.UnpicklingError(f"an array in the memory order {order!r}")
    return _PickledArray(_array_from_bytes(data, dtype, shape, order))


def _scalar(dtype: _PickledDtype, data: object) -> _PickledArray:
    return _PickledArray(_array_from_bytes(data, dtype, (), "C"))


def _encode_latin1(text: object, encoding: object = "latin1") -> bytes:
    if encoding != "latin1" or not isinstance(text, str):
        raise pickle.UnpicklingError(f"a byte string in the encoding {encoding!r}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    return b""


_STAND_INS: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): _begin_array,
    ("numpy", "dtype"): _begin_dtype,
    ("_codecs", "encode"): _encode_latin1,
    ("__builtin__", "bytes"): _no_bytes,  # how protocols below 3 write an empty byte string
    ("collections", "OrderedDict"): OrderedDict,
}
for _package in ("numpy.core", "numpy._core"):
    _STAND_INS[f"{_package}.multiarray", "_reconstruct"] = _begin_array
    _STAND_INS[f"{_package}.multiarray", "scalar"] = _scalar
    _STAND_INS[f"{_package}.numeric", "_frombuffer"] = _array_from_buffer


class _NumbersOnlyUnpickler(pickle.Unpickler):
    """An unpickler that knows the stand-ins above and refuses every other name."""

    def find_class(self, module: str, name: str) -> Any:
        stand_in = _STAND_INS.get((module, name))
        if stand_in is None:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}; only numpy arrays and containers are read"
            )
        return stand_in

    def persistent_load(self, pid: object) -> Any:
        raise pickle.UnpicklingError("it refers to data outside the file")


def _resolve(value: Any, done: dict[int, Any]) -> Any:
    """Replace the stand-ins inside plain containers by what they stand for.

    Args:
        value: what was read; it may hold one container many times, which stays one.
        done: containers that are replaced already, by their identity.
    """
    if isinstance(value, _PickledArray):
        return value.array
    if not isinstance(value, dict | list | tuple):
        return value
    if id(value) not in done:
        done[id(value)] = (
            {key: _resolve(item, done) for key, item in value.items()}
            if isinstance(value, dict)
            else type(value)(_resolve(item, done) for item in value)
        )
    return done[id(value)]


def _check_memo(file: BinaryIO) -> None:
    """Refuse numbers of the unpickler's memory that no pickle counts up to: it makes room for all below them.

    Raises:
        UnpicklingError: such a number.
    """
    for count, (operation, argument, _) in enumerate(pickletools.genops(file)):
        if operation.name in _MEMO_WRITES and isinstance(argument, int) and argument > count:
            raise pickle.UnpicklingError(f"it wants room for {argument} objects and has {count}")
    file.seek(0)


def read_numeric_pickle(path: Path) -> Any:
    """Read a pickle of plain containers and numeric numpy arrays.

    Args:
        path: the file; written by any Python and any numpy.

    Returns:
        The object: dicts, lists, tuples, strings, numbers and `numpy.ndarray`s (read-only).

    Raises:
        WeightsError: the file is damaged, or holds anything else; the class it asked for is named.
    """
    with path.open("rb") as file:
        try:
            _check_memo(file)
            return _resolve(_NumbersOnlyUnpickler(file, encoding="latin1").load(), {})
        except pickle.UnpicklingError as error:
            raise WeightsError(f"{path}: refused as a pickle of weights: {error}") from None
        except Exception as error:  # the bytes are anybody's: a damaged pickle fails in any way it likes
            reason = f"{type(error).__name__}: {error}"
            raise WeightsError(
                f"{path}: none of a checkpoint, safetensors and a readable pickle of weights ({reason})"
            ) from None
