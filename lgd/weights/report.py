"""What a load of weights says about itself: its errors and its one-line summary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from lgd.words import counted

_MAX_LISTED = 10
_STATE_OF_TRAINING = (".loss_normalizer", ".num_batches_tracked")


class WeightsError(ValueError):
    """A weights file that cannot be used, or does not fit the model. The message is for the user."""


@dataclass(frozen=True)
class LoadReport:
    """What was loaded from a file, and what was knowingly not.

    Attributes:
        source: the file.
        kind: what the file is, in words.
        num_loaded: tensors of the model that got their values from the file.
        kept: names of the model's tensors that the file does not hold and that keep their values.
        dropped: names in the file that the model has no use for.
        note: what was done to the values on the way, if anything.
    """

    source: str
    kind: str
    num_loaded: int
    kept: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    note: str | None = None

    def untrained(self) -> list[str]:
        """The tensors that hold no trained values now; a state of the training alone is not missed."""
        return [name for name in self.kept if not name.endswith(_STATE_OF_TRAINING)]

    def summary(self) -> str:
        """One line for the log."""
        parts = [f"{self.source} ({self.kind}): {counted(self.num_loaded, 'tensor')} loaded"]
        if self.note:
            parts.append(self.note)
        if self.kept:
            parts.append(f"not in the file, kept as initialised: {_count_by_part(self.kept)}")
        if self.dropped:
            parts.append(f"in the file, not used: {_count_by_part(self.dropped)}")
        return "; ".join(parts)


def list_names(names: Iterable[str]) -> str:
    """The first few of `names`, sorted, and how many more there are."""
    ordered = sorted(names)
    listed = ", ".join(ordered[:_MAX_LISTED])
    more = len(ordered) - _MAX_LISTED
    return f"{listed} and {more} more" if more > 0 else listed


def _count_by_part(names: Iterable[str]) -> str:
    """Names counted by the module they lie in: "student.head (20), adapter (6)"."""
    counts = Counter(_part_of(name) for name in names)
    return ", ".join(f"{part} ({count})" if count > 1 else part for part, count in counts.items())


def _part_of(name: str) -> str:
    depth = 2 if name.startswith(("student.", "teacher.")) else 1
    return ".".join(name.split(".")[:depth])
