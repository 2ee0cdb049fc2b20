"""What the watches of the ranks tell one another through the store, every few seconds."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import NamedTuple

from lgd.ranks import process_group
from lgd.ranks.channel import Channel
from lgd.ranks.store import in_time

_SILENCE_SECONDS = 8.0
"""After how long without a word a rank is taken for stopped, or cut off."""

_MOST_NAMES = 4

_NOTHING = json.dumps([0, False, 0, 0, "", False])
"""What a rank that has not begun says."""


class Mark(NamedTuple):
    """Where a rank is.

    Attributes:
        step: that it works on, from 1.
        stage: marks made in it.
        place: what it does.
        may_take_long: whether that is no part of a step.
    """

    step: int
    stage: int
    place: str
    may_take_long: bool

    def __str__(self) -> str:
        return f"step {self.step}, {self.place}"


@dataclass(frozen=True)
class News:
    """Why the run ends, from the rank that knows first."""

    message: str
    is_stall: bool


class Rounds:
    """Tells the other ranks where this one is, and hears where they are.

    Attributes:
        rank: this one.
    """

    def __init__(self, channel: Channel) -> None:
        """Connect to the store of `channel` anew: what hangs there shall not hold up others."""
        assert channel.store is not None
        self._store = channel.store.clone()
        self._hosts = channel.hosts
        self.rank = process_group.get_rank()
        self._count = 0
        self._last = time.monotonic()
        self._is_lost = False
        self._heard: dict[int, tuple[int, float]] = {}
        self._places: dict[int, tuple[Mark, bool]] = {}

    def go(self, mark: Mark, *, stands: bool) -> News | None:
        """Tell and hear once; return why the run ends, if a rank says so. May wait for ever.

        Args:
            mark: where this rank is.
            stands: whether it has been there for too long: only then the others are asked where they are.
        """
        if self._is_lost:
            return None
        try:
            self._count += 1
            self._store.set(f"watch/{self.rank}", json.dumps([self._count, stands, *mark]))
            if stands:
                self._hear_all()
            else:
                self._heard = {}
            news = json.loads(self._store.get("over")) if self._store.check(["over"]) else None
        except RuntimeError:  # the keeper is gone; what that means shows in the collectives
            self._is_lost = True
            return None
        self._last = time.monotonic()
        return News(**news) if news else None

    def tell(self, message: str, *, is_stall: bool) -> None:
        """Let the others know why the run ends; the first to tell is the one that is heard."""
        told = json.dumps({"message": message, "is_stall": is_stall})
        try:
            in_time(lambda: self._store.compare_set("over", "", told), 1.0)
        except (RuntimeError, TimeoutError):
            return

    def find_stall(self, mark: Mark) -> str | None:
        """By whom the run stands, this rank standing at `mark`; None while any other gets on."""
        now = time.monotonic()
        if self._is_lost or now - self._last > _SILENCE_SECONDS:
            keeper = f"the keeper of the ranks' store (rank 0 on {self._hosts[0]}, or the launcher)"
            return f"{keeper} does not answer, and {self._name([self.rank])} stands at {mark}"
        heard, places = dict(self._heard), dict(self._places)
        if len(heard) < len(self._hosts) - 1:
            return None
        silent = [rank for rank, (_, when) in heard.items() if now - when > _SILENCE_SECONDS]
        others = {rank: place for rank, place in places.items() if rank not in silent}
        if not all(stands for _, stands in others.values()):
            return None
        if silent:
            here = f"{self._name([self.rank])} stands at {mark}"
            return f"nothing is heard of {self._name(silent)}: stopped, or cut off; {here}"
        marks = {rank: where for rank, (where, _) in others.items()} | {self.rank: mark}
        behind = min((where.step, where.stage) for where in marks.values())
        standing = sorted(rank for rank, where in marks.items() if (where.step, where.stage) == behind)
        return f"{self._name(standing)} stands at {marks[standing[0]]}"

    def _hear_all(self) -> None:
        now = time.monotonic()
        for rank in range(len(self._hosts)):
            if rank == self.rank:
                continue
            key = f"watch/{rank}"
            said = self._store.get(key) if self._store.check([key]) else _NOTHING
            count, stands, *where = json.loads(said)
            self._places[rank] = (Mark(*where), stands)
            if self._heard.get(rank, (-1, 0.0))[0] != count:
                self._heard[rank] = (count, now)

    def _name(self, ranks: list[int]) -> str:
        more = len(ranks) - _MOST_NAMES
        names = [f"rank {rank} on {self._hosts[rank]}" for rank in ranks[:_MOST_NAMES]]
        return ", ".join(names) + (f" and {more} more" if more > 0 else "")
