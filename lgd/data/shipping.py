"""How workers hand their batches to the trainer: in shared memory that is used again and again.

The system clears new shared memory page by page when it is first written to, which takes ten times as long as
the writing itself. So a worker keeps what it has sent, and fills it anew once the trainer has its own copy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lgd.structures import Batch

_FLAG = 64
"""Bytes before the contents; the first says whether the buffer is in use."""


@dataclass(frozen=True)
class Buffer:
    """Shared memory of a worker: (_FLAG + n,) uint8."""

    memory: Tensor

    @property
    def contents(self) -> Tensor:
        """(n,) uint8."""
        return self.memory[_FLAG:]

    @property
    def is_free(self) -> bool:
        """Whether the trainer has copied what was in it."""
        return not self.memory[0].item()

    def occupy(self) -> None:
        """Say that there is something in it."""
        self.memory[0] = 1

    def release(self) -> None:
        """Say that nobody reads it any more."""
        self.memory[0] = 0


class Buffers:
    """A worker's buffers, as many as it has batches on the way."""

    def __init__(self) -> None:
        self._buffers: list[Buffer] = []

    def take(self, num_bytes: int) -> Buffer:
        """Return one that is free, for at least so many bytes; what it held before may be left in it."""
        for place, buffer in enumerate(self._buffers):
            if buffer.is_free:
                if len(buffer.contents) < num_bytes:  # too small today, too small tomorrow
                    buffer = self._buffers[place] = _make_buffer(num_bytes)
                break
        else:
            buffer = _make_buffer(num_bytes)
            self._buffers.append(buffer)
        buffer.occupy()
        return buffer


def _make_buffer(num_bytes: int) -> Buffer:
    memory = torch.empty(_FLAG + num_bytes, dtype=torch.uint8)
    return Buffer(memory.share_memory_())  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Shipment:
    """A batch whose images lie in a buffer, to be copied out of it once.

    Attributes:
        buffer: the worker's.
        see_images: from the contents of the buffer to images (B, 3, H, W).
        rest: the batch; its `images` have no pixels.
    """

    buffer: Buffer
    see_images: Callable[[Tensor], Tensor]
    rest: Batch

    def pin_memory(self) -> Batch:
        """Return a copy in page-locked memory (called by the data loader)."""
        return self._unload(Tensor.pin_memory)

    def unload(self) -> Batch:
        """Return the batch with images of its own."""
        return self._unload(Tensor.clone)

    def _unload(self, copy: Callable[[Tensor], Tensor]) -> Batch:
        batch = replace(self.rest, images=self.see_images(self.buffer.contents)).map(copy)
        self.buffer.release()
        return batch

    def __reduce__(self) -> tuple[Any, ...]:
        """Send all but the images by value: every tensor would be a file of its own."""
        return _receive, (self.buffer, self.see_images, _map_all(self.rest, Tensor.numpy))


def _receive(buffer: Buffer, see_images: Callable[[Tensor], Tensor], arrays: Batch) -> Shipment:
    return Shipment(buffer, see_images, _map_all(arrays, torch.from_numpy))


def _map_all(batch: Batch, function: Callable[[Any], Any]) -> Batch:
    return replace(batch.map(function), image_ids=function(batch.image_ids))
