"""Batches side by side on a CPU: threads that compute each for itself get more done than one shared out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


_MOST_THREADS = 8
"""That each compute a part of a batch at once."""


@dataclass(frozen=True)
class Parts:
    """How a batch is cut into calls that get more done at once than one after the other.

    Attributes:
        least: a call has so many images, or a multiple.
        most: and at most so many; None for as many as there are for each thread.
    """

    least: int = 1
    most: int | None = None

    def num_threads(self, batch: int) -> int:
        """That compute calls of a batch of so many images."""
        return max(1, min(_MOST_THREADS, batch // self.least, torch.get_num_threads()))

    def size(self, batch: int) -> int:
        """Images of a call."""
        size = max(1, batch // self.num_threads(batch) // self.least) * self.least
        return size if self.most is None else min(size, self.most)


class Mapper(Protocol):
    """`map`, or what does as it does."""

    def __call__(self, call: Callable[[T], R], each: Iterable[T], /) -> Iterator[R]:
        """The results, in order."""
        ...


@contextmanager
def side_by_side(number: int) -> Iterator[Mapper]:
    """Open so many threads that share torch's among them.

    Args:
        number: of the threads, at most torch's; 1 for none but the caller's.

    Yields:
        What maps a function over arguments in them, results in order; a single one is computed in the
        caller's, with all of torch's threads.
    """
    if number == 1:
        yield map
        return
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(number, "batches", torch.set_num_threads, (before // number,))

    def run(call: Callable[[T], R], each: Iterable[T], /) -> Iterator[R]:
        arguments = list(each)
        return pool.map(call, arguments) if len(arguments) > 1 else map(call, arguments)

    try:
        yield run
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)  # else threads that begin later had the number of those
