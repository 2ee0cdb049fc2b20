"""Batches on the device of the model, copied while the step before runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from lgd.structures import Batch


def prefetch(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """Bring batches to a device; on CUDA one ahead, on a stream of its own.

    Copying a batch, and decoding it where that is done here, goes on beside the step before. Nothing waits on
    the host if the batches are in page-locked memory. An error comes in the place of its batch.
    """
    if device.type != "cuda":
        for batch in batches:
            yield batch.to(device)
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    source = iter(batches)
    ahead = _fetch(source, device, stream)
    while ahead is not None:
        batch, copied = ahead
        error: Exception | None = None
        try:
            ahead = _fetch(source, device, stream)
        except Exception as reason:
            error = reason
        yield _hand_over(batch, copied, torch.cuda.current_stream(device))
        if error is not None:
            raise error


def _fetch(
    source: Iterator[Batch], device: torch.device, stream: torch.cuda.Stream
) -> tuple[Batch, torch.cuda.Event] | None:
    """The next batch and what its copying ends with; None after the last."""
    with torch.cuda.stream(stream):
        batch = next(source, None)
        if batch is None:
            return None
        return batch.to(device, non_blocking=True), stream.record_event()


def _hand_over(batch: Batch, copied: torch.cuda.Event, stream: torch.cuda.Stream) -> Batch:
    """Let a stream use the batch once it is copied, and nobody else its memory before that stream is done."""
    stream.wait_event(copied)

    def use(tensor: Tensor) -> Tensor:
        tensor.record_stream(stream)
        return tensor

    return batch.map(use)
