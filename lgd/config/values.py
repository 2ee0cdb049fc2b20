"""What a setting may hold: number ranges as types, and the way from YAML or command-line text to a value."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

UNUSED = "Accepted for the reference's files; has no effect."
"""What a key says of itself that the reference declares and reads nowhere."""


class ConfigError(ValueError):
    """A configuration that a user can mend; the message names file, key and way out."""


@dataclass(frozen=True)
class Interval:
    """The numbers from `low` to `high`, both included unless `above_low` leaves `low` out."""

    low: float
    high: float = math.inf
    above_low: bool = False

    def __contains__(self, number: float) -> bool:
        """Whether a finite number lies in the interval."""
        over = number > self.low if self.above_low else number >= self.low
        return over and number <= self.high and math.isfinite(number)

    def __str__(self) -> str:
        """The interval in words: "above 0", "in [0, 1]"."""
        if math.isfinite(self.high):
            return f"in {'(' if self.above_low else '['}{self.low:g}, {self.high:g}]"
        return f"above {self.low:g}" if self.above_low else f"{self.low:g} or more"


PositiveInt = Annotated[int, Interval(1)]
NonNegativeInt = Annotated[int, Interval(0)]
PositiveFloat = Annotated[float, Interval(0, above_low=True)]
NonNegativeFloat = Annotated[float, Interval(0)]
UnitFloat = Annotated[float, Interval(0, 1)]
