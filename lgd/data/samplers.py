"""Which images make up which batch: pure functions of (seed, position), without state.

Legend: I images, A annotations, G images of a global batch (one optimizer step over all ranks).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from heapq import heapify, heapreplace
from itertools import count

import numpy as np
import numpy.typing as npt

from lgd.words import counted

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

_NUM_GROUPS = 2
_REPEAT_UNIT = 2**16
_FINE_UNIT = 2**24
"""Where images come less than once an epoch, which has to be as exact."""


def aspect_groups(heights: Integers, widths: Integers) -> Integers:
    """Group of each image: (I,), 1 where it is wider than high, else 0."""
    return (widths > heights).astype(np.int64)


def repeat_factors(image: Integers, labels: Integers, *, num_images: int, threshold: float) -> Floats:
    """How often each image is to come, so that rare classes are seen more often.

    A class that is in a share f of the images has the factor max(1, sqrt(threshold / f)); an image has the
    largest factor of its classes (Gupta et al., "LVIS", 2019, section on repeat factor sampling).

    Args:
        image: (A,) the image of each annotation, in [0, num_images).
        labels: (A,) its label.
        num_images: I.
        threshold: the share below which a class is rare.

    Returns:
        (I,) at least 1; 1 for an image without annotations.
    """
    factors = np.ones(num_images)
    if len(labels):
        pairs = np.unique(np.stack([image, labels]), axis=1)
        shares = np.bincount(pairs[1]) / num_images
        factor = np.sqrt(np.maximum(1.0, threshold / np.where(shares > 0, shares, 1)))
        np.maximum.at(factors, pairs[0], factor[pairs[1]])
    return factors


def weigh_parts(repeats: Floats, part: Integers, weights: Floats) -> Floats:
    """How often each image is to come, so that each part has its share of all images drawn.

    Args:
        repeats: (I,) above 0, how often each image comes for once of the others of its part.
        part: (I,) in [0, P), the part that each image is of.
        weights: (P,) above 0, the parts' shares, in any unit.

    Returns:
        (I,) above 0, whose sum is I: in an epoch as many images come as there are.
    """
    totals = np.bincount(part, weights=repeats, minlength=len(weights))
    assert totals.all(), "each part has an image"
    factor = len(repeats) * weights / weights.sum() / totals
    return np.asarray(repeats * factor[part], dtype=np.float64)


class TrainingSampler:
    """The endless sequence of global batches of training.

    Each aspect group is an endless stream of its own, one random permutation after the other, so that every
    image comes exactly once in each of its group's epochs. Group 1, of share r of the images, supplies
    global batch k when floor((k + 1) r + u) > floor(k r + u), u from the seed: its batches are spread evenly,
    and how many of them come before k is known without going through them. A global batch is cut into
    micro-batches in order, one rank after the other; hence its images depend neither on the number of ranks
    nor on the number of accumulation steps.

    An image that is to be repeated f times comes floor((e + 1) f + v) - floor(e f + v) times in epoch e, v of
    each image from the seed: f times on average, and again without going through the epochs before. Where f
    is below 1, as of an image of a large set that is to be seen rarely, the image misses some epochs.
    """

    def __init__(
        self,
        indices: Integers,
        groups: Integers,
        *,
        global_batch_size: int,
        seed: int,
        repeats: Floats | None = None,
    ) -> None:
        """Prepare the streams.

        Args:
            indices: (I,) the images to draw from.
            groups: (I,) 0 or 1, of each of `indices`.
            global_batch_size: G.
            seed: of the permutations.
            repeats: (I,) above 0, how often each image comes in an epoch; None for once.

        Raises:
            ValueError: there are no images.
        """
        if len(indices) == 0:
            raise ValueError("there are no images to train on")
        self.global_batch_size = global_batch_size
        # In units of 1 / 65536, or finer ones, so that all of it is exact in integers.
        self._unit = 1 if repeats is None else _REPEAT_UNIT if repeats.min() >= 1 else _FINE_UNIT
        weights = np.ones(len(indices), dtype=np.int64)
        offsets = np.zeros(len(indices), dtype=np.int64)
        if repeats is not None:
            weights = np.rint(repeats * self._unit).astype(np.int64).clip(min=1)
            offsets = np.random.default_rng((seed, _NUM_GROUPS, 1)).integers(self._unit, size=len(indices))
        members = [groups == group for group in range(_NUM_GROUPS)]
        self._members = [indices[which] for which in members]
        self._weights = [weights[which] for which in members]
        self._offsets = [offsets[which] for which in members]
        self._share, self._total = int(self._weights[1].sum()), int(weights.sum())
        self._seed = seed
        self._phase = int(np.random.default_rng((seed, _NUM_GROUPS)).integers(self._total))
        self._epoch = lru_cache(maxsize=2 * _NUM_GROUPS)(self._make_epoch)
        self._epoch_start = lru_cache(maxsize=64)(self._count_before)

    def batch(self, k: int) -> Integers:
        """Return the images of global batch `k`: (G,)."""
        # u = phase / total and r = share / total, so all of it is exact in integers.
        before, after = ((j * self._share + self._phase) // self._total for j in (k, k + 1))
        group, ordinal = (1, before) if after > before else (0, k - before)
        start = ordinal * self.global_batch_size
        return self._stream(group, start, start + self.global_batch_size)

    def _stream(self, group: int, start: int, end: int) -> Integers:
        """Places `start` to `end` of the group's stream."""
        # Epochs that yield more than `start` and each image once more: `start` lies in none after these.
        total = int(self._weights[group].sum())
        candidates = range((start + len(self._members[group])) * self._unit // total + 2)
        first = bisect_right(candidates, start, key=lambda epoch: self._epoch_start(group, epoch)) - 1
        last = first
        while self._epoch_start(group, last + 1) < end:
            last += 1
        images = np.concatenate([self._epoch(group, epoch) for epoch in range(first, last + 1)])
        offset = self._epoch_start(group, first)
        return images[start - offset : end - offset]

    def _appearances(self, group: int, epoch: int) -> Integers:
        """How often each of the group's images has come before the epoch."""
        appearances: Integers = (epoch * self._weights[group] + self._offsets[group]) // self._unit
        return appearances

    def _count_before(self, group: int, epoch: int) -> int:
        """Where in the group's stream the epoch begins."""
        return int(self._appearances(group, epoch).sum())

    def _make_epoch(self, group: int, epoch: int) -> Integers:
        """The group's images in the order of one epoch."""
        times = self._appearances(group, epoch + 1) - self._appearances(group, epoch)
        images = np.repeat(self._members[group], times)
        return images[np.random.default_rng((self._seed, group, epoch)).permutation(len(images))]


@dataclass(frozen=True)
class MicroBatchSampler:
    """One rank's share of a `TrainingSampler`: endless micro-batches of (image, position in the sequence).

    Attributes:
        sampler: the global batches.
        num_ranks: ranks that share each of them.
        rank: this one.
        num_accumulation_steps: micro-batches of a rank in each of them.
        start: the first micro-batch, counted from the beginning of training.
    """

    sampler: TrainingSampler
    num_ranks: int
    rank: int
    num_accumulation_steps: int
    start: int

    def __post_init__(self) -> None:
        parts = self.num_ranks * self.num_accumulation_steps
        if self.sampler.global_batch_size % parts:
            raise ValueError(
                f"a global batch of {counted(self.sampler.global_batch_size, 'image')} cannot be shared by "
                f"{counted(self.num_ranks, 'rank')} in "
                f"{counted(self.num_accumulation_steps, 'accumulation step')}"
            )

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Go through the micro-batches from `start` on, without end."""
        return map(self.micro_batch, count(self.start))

    def micro_batch(self, number: int) -> list[tuple[int, int]]:
        """Return the images of micro-batch `number`, each with its position in the whole sequence."""
        k, step = divmod(number, self.num_accumulation_steps)
        size = self.sampler.global_batch_size // (self.num_ranks * self.num_accumulation_steps)
        first = (step * self.num_ranks + self.rank) * size
        images = self.sampler.batch(k)[first : first + size].tolist()
        return [(image, k * self.sampler.global_batch_size + first + j) for j, image in enumerate(images)]


def evaluation_batches(canvases: Integers, *, batch_size: int, num_ranks: int, rank: int) -> list[list[int]]:
    """Share all images out to ranks, in batches of equal canvases so that batching adds no padding.

    Args:
        canvases: (I, 2) padded (height, width) of each image, pixels.
        batch_size: images of a batch at most.
        num_ranks: ranks to share out to.
        rank: the one asked for.

    Returns:
        The batches of `rank`, those of most pixels first. Every image is in one batch of one rank; the ranks'
        pixels differ by at most a batch.
    """
    unique, group_of = np.unique(canvases, axis=0, return_inverse=True)
    batches = []
    for group, (height, width) in enumerate(unique.tolist()):
        images = np.flatnonzero(group_of.reshape(-1) == group).tolist()
        # Where a canvas is rare, smaller batches let every rank have some of it.
        size = min(batch_size, -(-len(images) // num_ranks))
        chunks = (images[first : first + size] for first in range(0, len(images), size))
        batches += [(height * width * len(chunk), chunk) for chunk in chunks]
    loads = [(0, r) for r in range(num_ranks)]
    heapify(loads)
    mine = []
    for pixels, chunk in sorted(batches, key=lambda batch: (-batch[0], batch[1])):
        load, receiver = loads[0]
        heapreplace(loads, (load + pixels, receiver))
        if receiver == rank:
            mine.append(chunk)
    return mine
