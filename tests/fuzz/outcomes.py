"""What may come of a damaged input: soon, and where it is refused, in one line."""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager

SECONDS = 5.0
"""Of work. Waiting takes longer where others use the machine: that is a guard against hanging alone."""

_LONGEST_WAIT = 12 * SECONDS


@contextmanager
def soon(what: str) -> Iterator[None]:
    """Do the block, which is `what`, in a few seconds."""
    begin, work = time.monotonic(), time.process_time()
    yield
    assert time.process_time() - work < SECONDS, what
    assert time.monotonic() - begin < _LONGEST_WAIT, what


def require_one_line(text: str, longest: int = 2500) -> None:
    """What is said to the user is a line that a terminal shows as it is."""
    assert text
    assert all(letter.isprintable() or unicodedata.category(letter) == "Zs" for letter in text), text
    assert len(text) <= longest, text
