"""The splits of a data set: what they are called, which of them is meant, and what to type for each."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from lgd.data.errors import DataError
from lgd.data.limits import name_some, plain
from lgd.data.presence import names_in

WHOLE = "all"
"""What a set that is not divided is called."""

_ALIKE = (("train", "training"), ("val", "valid", "validation"), ("test", "testing"))
"""Names that tools give to the same split."""

_TAKES_WHOLE = ("train", WHOLE, "default")
"""What may be asked of a set that is not divided: to test on what was trained on must be written out."""


@dataclass(frozen=True)
class Split:
    """A part of a data set that was found.

    Attributes:
        kind: its format, the first word of `spec`.
        name: "train", "valid", ..., as the files call it; "all" where the set is not divided.
        spec: the whole line to type: "coco:ROOT:train".
        layout: how the files lie, in words.
    """

    kind: str
    name: str
    spec: str
    layout: str


_MAX_LISTED = 1000

S = TypeVar("S", bound=Split)


def alike(name: str) -> tuple[str, ...]:
    """Return the names of the split that `name` is called by, itself first."""
    names = next((names for names in _ALIKE if name in names), ())
    return (name, *(other for other in names if other != name))


def usual_name(text: str) -> str | None:
    """The one word of a file's or folder's name that is the usual name of a split, if there is one."""
    words = [word for word in re.split(r"[^a-z0-9]+", text.lower()) if any(word in names for names in _ALIKE)]
    return words[0] if len(words) == 1 else None


def in_order(found: Iterable[S]) -> list[S]:
    """Sort splits: those to train on, to validate on, to test on, and then all others by name."""

    def place(split: S) -> tuple[int, str]:
        usual = usual_name(split.name)
        rank = next((k for k, names in enumerate(_ALIKE) if usual in names), len(_ALIKE))
        return rank, split.name

    return sorted(found, key=place)


def choose(found: Sequence[S], wanted: str | None) -> list[S]:
    """Return which of the splits of a set are meant: none, one, or several that cannot be told apart.

    Args:
        found: all of the set.
        wanted: a split's name; None where none is given.
    """
    if wanted is None:
        return list(found)
    for name in alike(wanted):
        if same := [split for split in found if split.name == name]:
            return same
    is_whole = len({split.name for split in found}) == 1 and usual_name(found[0].name) is None
    return list(found) if is_whole and wanted in _TAKES_WHOLE else []


def the_one(found: Sequence[S], wanted: str | None, place: Path, spec: str, what: str) -> S:
    """Return the split that is meant.

    Args:
        found: all that were found at `place`.
        wanted: a split's name; None where none is given.
        place: the folder or file.
        spec: what the user typed.
        what: whose annotations were looked for.

    Raises:
        DataError: none is meant, or several are; names what is there, and what to type.
    """
    meant = choose(found, wanted)
    if len(meant) == 1:
        return meant[0]
    if meant:
        lines = name_some(in_order(meant), lambda split: f"{split.spec} is {split.layout}", at_most=8)
        raise DataError(f"{spec} may mean one of {len(meant)}; write which: {lines}")
    if not found:
        raise DataError(f"{spec}: no annotations of {what} were found in {place}; {_describe(place)}")
    lines = name_some(in_order(found), lambda split: f"{split.spec} ({split.layout})", at_most=8)
    is_whole = [split.name for split in found] == [WHOLE]
    has = "; it is not divided: all of it is" if is_whole else f"{_nearest(found, wanted)}; it has"
    raise DataError(f"{spec}: {place} has no split {plain(str(wanted))}{has} {lines}")


def _describe(place: Path) -> str:
    """Say in a few words what is there."""
    if not place.is_dir():
        return "it is a file of another format; a JSON or YAML can be named, or a folder"
    names = [name + "/" * (place / name).is_dir() for name in sorted(names_in(place))[:_MAX_LISTED]]
    shown = [name for name in names if not name.startswith(".")]
    folders_first = sorted(shown, key=lambda name: not name.endswith("/"))
    holds = f"it holds {name_some(folders_first, plain, at_most=8)}" if shown else "it is empty"
    return f"{holds}. A COCO-style JSON and its pictures can be named: coco:FILE.json:IMAGES"


def _nearest(found: Sequence[Split], wanted: str | None) -> str:
    close = difflib.get_close_matches(str(wanted), [split.name for split in found], n=1)
    spec = next((split.spec for split in found if close and split.name == close[0]), None)
    return f"; did you mean {spec}?" if spec else ""
