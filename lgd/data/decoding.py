"""How files of pictures become pixels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lgd.data.deep import Range

LARGE = 2**20
"""Pixels of a picture from which on it pays to decode it smaller, or to keep what was decoded."""


@dataclass(frozen=True)
class Decoding:
    """How files become pixels.

    Attributes:
        value_range: the values of pictures of more than 8 bits that become 0 and 255; None: all of 16 bits,
            and 32 bits are an error.
        scaled: whether large JPEGs are decoded smaller where less is needed of them.
        cache_dir: where large pictures are kept as they were decoded; None: nowhere.
    """

    value_range: Range | None = None
    scaled: bool = True
    cache_dir: Path | None = None

    def reduction(self, height: int, width: int, at_most: int) -> int:
        """By how much, each way, a picture of this size is decoded smaller, where it may be by `at_most`."""
        return at_most if self.scaled and height * width >= LARGE else 1


DEFAULT_DECODING = Decoding()
