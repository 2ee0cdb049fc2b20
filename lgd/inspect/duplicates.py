"""The same picture twice: equal files, and pictures that look alike, in one set or in several.

Files are read only where another has the same size. Pictures look alike where their 16 x 16 grey thumbnails
correlate: copies in another size, format or quality do by more than 0.999, frames of a resting camera by
about 0.99; of other pictures of one kind (cells, dice on a table) hardly any two do.

Legend: P pictures of all sets, one set after the other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np

from lgd.data.index import AnnotationIndex, Integers
from lgd.data.limits import name_some
from lgd.inspect.pictures import Thumbnails, file_states, picture_paths, read_thumbnails
from lgd.notices import follow

ALIKE = 0.985
"""Correlation from which two thumbnails show the same picture."""
BLANK = 1.0
"""Grey levels of deviation below which a thumbnail shows nothing that could be told from another."""

MAX_COMPARED = 20_000
"""Pictures of all sets together whose files are compared unasked."""
MAX_SEEN = 3000
"""Pictures of all sets together that are looked at unasked: each is decoded once."""

_ENDS = 4096
_ROWS = 2048


@dataclass(frozen=True)
class Duplicates:
    """Which pictures are the same.

    Attributes:
        names: of the sets.
        starts: where the pictures of each set begin, and where the last end.
        files: (P,) pictures of one number have equal files; None where the files were not compared.
        looks: (P,) pictures of one number look alike or have equal files; None where nobody looked.
        paths: P of them; none where nothing was looked for.
    """

    names: tuple[str, ...]
    starts: tuple[int, ...]
    files: Integers | None
    looks: Integers | None
    paths: tuple[Path, ...]

    @property
    def left_out(self) -> str | None:
        """What was not done, in a line."""
        total = f"{self.starts[-1]} pictures are many (--duplicates does it nevertheless)"
        if self.files is None:
            return f"the same picture twice: not looked for, {total}"
        return f"pictures that look alike: not looked for, {total}" if self.looks is None else None


def find_duplicates(
    indices: Sequence[AnnotationIndex], *, compare: bool | None = None, look: bool | None = None
) -> Duplicates:
    """Find the pictures that are there more than once.

    Args:
        indices: the sets.
        compare: whether files are compared; None: unless they are many.
        look: whether pictures are looked at too; None: unless they are many.
    """
    names, starts = tuple(index.name for index in indices), tuple(accumulate(map(len, indices), initial=0))
    compare = starts[-1] <= MAX_COMPARED if compare is None else compare
    look = compare and starts[-1] <= MAX_SEEN if look is None else look
    if not (compare or look):
        return Duplicates(names, starts, None, None, ())
    by_set = [picture_paths(index) for index in indices]
    paths = [path for each in by_set for path in each]
    states = [file_states(each) for each in by_set]
    files = _equal_files(paths, np.array([size for each in states for size, _ in each], dtype=np.int64))
    if not look:
        return Duplicates(names, starts, files, None, tuple(paths))
    parts = [read_thumbnails(*arguments) for arguments in zip(indices, by_set, states, strict=True)]
    return Duplicates(names, starts, files, _look_alike(np.concatenate(parts), files), tuple(paths))


def _equal_files(paths: Sequence[Path], sizes: Integers) -> Integers:
    """(P,) one number for files of equal content, which are told by size, then both ends, then all of it."""
    groups = np.unique(sizes, return_inverse=True)[1]
    groups[sizes < 0] = len(paths) + np.flatnonzero(sizes < 0)
    for whole in (False, True):
        places = _repeated(groups)
        asked = follow(places, "comparing files of equal size", len(places), "files")
        digests = {int(i): _digest(paths[i], whole=whole) for i in asked}
        keys = [(int(group), digests.get(i, b"")) for i, group in enumerate(groups)]
        numbers: dict[tuple[int, bytes], int] = {}
        groups = np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)
    return groups


def _repeated(groups: Integers) -> Integers:
    """Where the numbers stand that are there more than once."""
    _, places, counts = np.unique(groups, return_inverse=True, return_counts=True)
    repeated: Integers = np.flatnonzero(counts[places] > 1)
    return repeated


def _digest(path: Path, *, whole: bool) -> bytes:
    """Of a file's content or of its ends; of an unreadable one what no other has."""
    try:
        with path.open("rb") as file:
            if whole:
                return hashlib.file_digest(file, "sha256").digest()
            head = file.read(_ENDS)
            file.seek(max(0, path.stat().st_size - _ENDS))
            return head + file.read(_ENDS)
    except OSError:
        return bytes(path)


def _look_alike(thumbnails: Thumbnails, files: Integers | None) -> Integers:
    """(P,) one number for pictures that look alike, also by way of others between them."""
    flat = thumbnails.reshape(len(thumbnails), -1).astype(np.float32)
    deviations = flat.std(axis=1)
    flat -= flat.mean(axis=1, keepdims=True)
    flat /= np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)
    flat[deviations < BLANK] = 0
    pairs = [np.zeros((2, 0), dtype=np.int64)]
    starts = range(0, len(flat), _ROWS)
    for start in follow(starts, "comparing pictures", len(flat), count=lambda start: _ROWS):
        rows, others = np.nonzero(flat[start : start + _ROWS] @ flat[start:].T >= ALIKE)
        pairs.append(np.stack([rows, others]) + start)
    if files is not None:
        order = np.argsort(files, kind="stable")
        same = files[order[:-1]] == files[order[1:]]
        pairs.append(np.stack([order[:-1][same], order[1:][same]]))
    first, second = np.concatenate(pairs, axis=1)
    # Slow to import, which those who train need not wait for.
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    graph = coo_matrix((np.ones(len(first), dtype=bool), (first, second)), shape=(len(flat), len(flat)))
    numbers: Integers = connected_components(graph, directed=False)[1].astype(np.int64)
    return numbers


def describe_duplicates(found: Duplicates) -> list[tuple[int, str]]:
    """Say what is there twice: (number of the set that it is said of, line)."""
    lines: list[tuple[int, str]] = []
    kinds = [(found.files, "the same picture twice"), (found.looks, "pictures that look alike")]
    said = np.zeros(len(found.paths), dtype=np.bool_)
    for groups, what in kinds:
        if groups is None:
            continue
        fresh = groups[_repeated(groups)]
        keep = [members for members in _members(groups, fresh) if not said[members].all()]
        for members in keep:
            said[members] = True
        lines += _lines(found, keep, what)
    return sorted(lines, key=lambda line: line[0])


def _members(groups: Integers, numbers: Integers) -> list[Integers]:
    """The places of each of the numbers, those of one number together."""
    order = np.argsort(groups, kind="stable")
    order = order[np.isin(groups[order], numbers)]
    return [] if len(order) == 0 else np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)


def _lines(found: Duplicates, groups: Sequence[Integers], what: str) -> list[tuple[int, str]]:
    """For each set that a group begins in, and each that it reaches: how many pictures, and the first."""
    cases: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for members in groups:
        sets = np.searchsorted(found.starts, members, side="right") - 1
        own = members[sets == sets[0]]
        if len(own) > 1:
            cases.setdefault((int(sets[0]), int(sets[0])), []).extend((own[0], other) for other in own[1:])
        for other in np.unique(sets[sets != sets[0]]).tolist():
            case = cases.setdefault((int(sets[0]), other), [])
            case.extend((own[0], member) for member in members[sets == other])
    return [(first, _say(found, first, other, pairs, what)) for (first, other), pairs in cases.items()]


def _say(found: Duplicates, first: int, other: int, pairs: Sequence[tuple[int, int]], what: str) -> str:
    shown = name_some([f"{found.paths[a].name} = {found.paths[b].name}" for a, b in pairs], at_most=3)
    if first == other:
        return f"{what}, in this set: {len(pairs)} ({shown})"
    return f"{what}, here and in {found.names[other]}, whose results will be too good: {len(pairs)} ({shown})"
