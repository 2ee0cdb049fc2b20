"""Records of JSON: lists of objects, their keys, and whom a complaint is about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lgd.data.errors import DataError
from lgd.data.index import Flags, Integers
from lgd.data.limits import name_some, shown


def records_of(document: Mapping[str, Any], key: str, path: Path) -> list[Any]:
    """The list of objects under a key; only annotations may be none.

    Raises:
        DataError: there is no such list, or it is empty.
    """
    if key not in document:
        raise DataError(f'{path} has no "{key}"; it has {name_some(list(document), shown) or "nothing"}')
    records = document[key]
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise DataError(f'{path}: "{key}" is not a list of objects')
    if not records and key != "annotations":
        raise DataError(f'{path}: "{key}" is empty')
    return records


def values_of(records: Sequence[Mapping[str, Any]], key: str, kind: str, path: Path) -> list[Any]:
    """The records' values of a key that each must have.

    Raises:
        DataError: one has not; `kind` is the word for it.
    """
    missing = [number for number, record in enumerate(records) if key not in record]
    if missing:
        raise DataError(f'{path}: no "{key}" in {name_some(missing, lambda n: name_of(records, n, kind))}')
    return [record[key] for record in records]


def name_of(records: Sequence[Mapping[str, Any]], number: int, kind: str) -> str:
    """Say which record: "image 7", or "image number 3" (from 0) where it has no id."""
    record = records[number]
    return f"{kind} {shown(record['id'])}" if "id" in record else f"{kind} number {number}"


def refuse(wrong: Flags, ids: Integers, subject: str, complaint: str, path: Path) -> None:
    """Raise DataError where a flag is set, with the ids of these."""
    if wrong.any():
        raise DataError(f"{path}: {subject} {name_some(ids[wrong].tolist())} {complaint}")
