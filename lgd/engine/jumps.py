"""Losses that jump: far above those of the steps before."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

_RECENT = 100
"""Steps that a loss is held against."""

_LEAST = 20
"""Before there are so many, nothing is a jump: the first losses fall fast."""

_FLOOR = 0.01
"""Share of the median below which the deviation is not taken to be: losses may be nearly constant."""


@dataclass(frozen=True)
class Jump:
    """A loss that jumped.

    Attributes:
        index: of the loss among those looked at.
        value: the loss.
        median: of the losses before it.
        deviations: by how many median deviations it is above that.
    """

    index: int
    value: float
    median: float
    deviations: float


class JumpWatch:
    """Holds each loss against the last hundred by their median and median absolute deviation.

    Neither is moved by a few outliers, and a loss that stays on its new level is none any more once that
    level has the majority.

    Args:
        limit: median deviations above the median from which on a loss has jumped; 0 for never.

    Attributes:
        recent: the losses before, oldest first; a checkpoint keeps them.
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.recent: deque[float] = deque(maxlen=_RECENT)

    def look(self, losses: Sequence[float]) -> list[Jump]:
        """Take the finite losses of the next steps; return those that jumped."""
        if not self.limit:
            return []
        jumps = []
        for index, value in enumerate(losses):
            if len(self.recent) >= _LEAST:
                median = statistics.median(self.recent)
                deviation = statistics.median(abs(each - median) for each in self.recent)
                deviations = (value - median) / max(deviation, _FLOOR * abs(median), 1e-12)
                if deviations > self.limit:
                    jumps.append(Jump(index, value, median, deviations))
            self.recent.append(value)
        return jumps
