"""Ids of annotation files as numbers of 64 bits, also where they are written as text.

Text of digits is the number that it says. Where one of the ids is a name, all are numbered from 1 in the
file's order; what they are called there is kept for `predictions.json`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lgd.data.errors import DataError
from lgd.data.index import Integers
from lgd.data.limits import MAX_NAME, is_printable, name_some, plain, shown
from lgd.data.records import name_of, values_of
from lgd.data.remarks import Remark
from lgd.words import counted

_LARGEST = 2**63 - 1
_DIGITS = re.compile("[+-]?[0-9]{1,19}")


@dataclass(frozen=True)
class Ids:
    """The ids of N records.

    Attributes:
        numbers: (N,) int64.
        written: the N ids as the file has them, None for one that is its number; empty where all are.
        by_name: the number of each id as text, where they are numbered anew; None where they are numbers.
    """

    numbers: Integers
    written: tuple[int | str | None, ...] = ()
    by_name: Mapping[str, int] | None = None

    def take(self, places: Integers) -> Ids:
        """The ids at these places."""
        written = tuple(self.written[place] for place in places) if self.written else ()
        return Ids(self.numbers[places], written, self.by_name)


def read_ids(records: Sequence[Mapping[str, Any]], kind: str, path: Path) -> tuple[Ids, list[Remark]]:
    """Read the ids of records.

    Args:
        records: of which each has an "id".
        kind: what they are: "image".
        path: the file, for messages.

    Returns:
        The ids, equal ones included, and a remark where some are text.

    Raises:
        DataError: one is absent, neither a number nor a name, or a number equals another's text.
    """
    values = values_of(records, "id", kind, path)
    if _are_numbers(values):
        return Ids(np.array(values, dtype=np.int64)), []
    numbers = _numbers(values, records, "id", kind, path)
    texts = [value for value in values if isinstance(value, str)]
    _refuse_equal_kinds(values, numbers, kind, path)
    is_distinct = len(set(numbers)) == len({str(value) for value in values})
    written: list[int | str | None]
    if None not in numbers and is_distinct:
        written = [value if isinstance(value, str) else None for value in values]
        ids = Ids(np.array(numbers, dtype=np.int64), tuple(written) if texts else ())
        return ids, _say_text(texts, kind, "are text and are read as the numbers that they say")
    by_name: dict[str, int] = {}
    places = [by_name.setdefault(_say(value), len(by_name) + 1) for value in values]
    remarks = _say_text(texts, kind, "are names: numbered from 1 in the file's order")
    written = [value if isinstance(value, str) else _number(value) for value in values]
    return Ids(np.array(places, dtype=np.int64), tuple(written), by_name), remarks


def read_references(
    records: Sequence[Mapping[str, Any]], key: str, kind: str, known: Ids, ids: Integers, path: Path
) -> tuple[Integers, list[Remark]]:
    """Find what annotations are of.

    Args:
        records: A annotations.
        key: what holds the id: "image_id".
        kind: of what: "image".
        known: the ids that there are, ascending, each once.
        ids: (A,) of the annotations, for messages.
        path: the file, for messages.

    Returns:
        (A,) places in `known`, and a remark where numbers are written as text.

    Raises:
        DataError: an id is none, or is not known.
    """
    values = values_of(records, key, "annotation", path)
    remarks: list[Remark] = []
    if known.by_name is None and _are_numbers(values):
        numbers = np.array(values, dtype=np.int64)
        unknown = ~np.isin(numbers, known.numbers)
    else:
        read = _numbers(values, records, key, "annotation", path)
        if known.by_name is not None:
            read = [known.by_name.get(_say(value)) for value in values]
        elif not known.written:
            is_text = np.array([isinstance(value, str) for value in values])
            remarks = _say_reference(ids[is_text], key)
        unknown = np.array([number is None for number in read], dtype=np.bool_)
        numbers = np.array([number or 0 for number in read], dtype=np.int64)
        unknown |= ~np.isin(numbers, known.numbers)
    if unknown.any():
        wrong = list(dict.fromkeys(_say(values[place]) for place in np.flatnonzero(unknown).tolist()))
        raise DataError(
            f"{path}: annotations {name_some(ids[unknown].tolist())} are of {kind} "
            f"{name_some(wrong, plain)}, which the file does not list"
        )
    return np.searchsorted(known.numbers, numbers), remarks


def _are_numbers(values: Sequence[Any]) -> bool:
    return all(type(value) is int and -_LARGEST <= value <= _LARGEST for value in values)


def _numbers(
    values: Sequence[Any], records: Sequence[Mapping[str, Any]], key: str, kind: str, path: Path
) -> list[int | None]:
    """What the values say; None for a name."""
    numbers = []
    for place, value in enumerate(values):
        number = _number(value)
        if number is None and not _is_name(value):
            raise DataError(
                f'{path}: "{key}" of {name_of(records, place, kind)} is {shown(value)}, not a whole number '
                "of at most 64 bits, nor a name"
            )
        numbers.append(number)
    return numbers


def _number(value: Any) -> int | None:
    if type(value) is float:
        return int(value) if value.is_integer() and abs(value) <= 2**53 else None
    if isinstance(value, str) and _DIGITS.fullmatch(value):
        value = int(value)
    return value if type(value) is int and abs(value) <= _LARGEST else None


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MAX_NAME and is_printable(value)


def _say(value: Any) -> str:
    """An id as text; 1.0 is 1."""
    return value if isinstance(value, str) else str(_number(value))


def _refuse_equal_kinds(values: Sequence[Any], numbers: Sequence[int | None], kind: str, path: Path) -> None:
    """Raise where one id is a number and another the text of the same number."""
    plain = {number for value, number in zip(values, numbers, strict=True) if not isinstance(value, str)}
    both = [
        value
        for value, number in zip(values, numbers, strict=True)
        if isinstance(value, str) and number in plain and number is not None
    ]
    if both:
        raise DataError(
            f"{path}: {kind} ids {name_some(both, shown)} are there as text and as a number; write each "
            "in one way, and differently from all others"
        )


def _say_text(texts: Sequence[str], kind: str, what: str) -> list[Remark]:
    if not texts:
        return []
    text = f"{len(texts)} {kind} ids {what}; predictions keep them as they are ({name_some(texts, shown)})"
    return [Remark(f"{kind}_ids_text", len(texts), text)]


def _say_reference(ids: Integers, key: str) -> list[Remark]:
    if not len(ids):
        return []
    named = name_some(ids.tolist())
    text = (
        f"{counted(len(ids), 'annotation has', 'annotations have')} {key} as text, read as the number "
        f"(annotations {named})"
    )
    return [Remark(f"{key}_text", len(ids), text)]
