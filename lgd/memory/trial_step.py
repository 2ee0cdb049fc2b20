"""One step on the batch that needs the most memory, before training: an out-of-memory comes at once."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lgd.distill.schedule import Phase
from lgd.engine.compile import CompileWatch
from lgd.engine.loop import Side
from lgd.ranks import process_group
from lgd.structures import Batch

_MAX_BATCH = 4096


def fits_memory(
    model: nn.Module,
    sides: Sequence[Side],
    batch: Batch,
    *,
    device: torch.device,
    mixed_precision: bool,
    compiled: bool = False,
) -> bool:
    """Try one step, forward and backward with distillation, on this rank alone.

    Nothing is changed by it: gradients are dropped, buffers and random state restored. No other rank is
    asked, but by SyncBN. The optimizers' state, where it is not there yet, takes its place meanwhile.

    Args:
        model: distiller or plain student, in training mode.
        sides: the optimizers.
        batch: on the host.
        device: where the model lies.
        mixed_precision: run the forward pass under bfloat16 autocast.
        compiled: whether parts of the model are compiled.

    Returns:
        Whether the memory sufficed.
    """
    fits = True
    try:
        with _unchanged(model, device), process_group.alone():
            reserved = _reserve_state(sides)
            with CompileWatch(compiled).step(batch, Phase(freeze_backbone=False, distill=True)):
                with torch.autocast(device.type, torch.bfloat16, enabled=mixed_precision):
                    losses = model(batch.to(device), distill=True)
                    total = torch.stack(list(losses.values())).sum()
                total.backward()  # type: ignore[no-untyped-call]
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            del reserved
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        fits = False
    # The failed step's tensors went with the exception, and what the allocator keeps of them must go, too.
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return fits


def largest_batch(fits: Callable[[int], bool], limit: int = _MAX_BATCH) -> int:
    """Find the most images that fit, by doubling and bisection.

    Args:
        fits: whether so many images fit; if they don't, more don't either.
        limit: not more than so many.

    Returns:
        Images in [0, limit]; 0 where a single one does not fit.
    """
    known, size = 0, 1
    while size <= limit and fits(size):
        known, size = size, size * 2
    too_many = min(size, limit + 1)
    while too_many - known > 1:
        middle = (known + too_many) // 2
        known, too_many = (middle, too_many) if fits(middle) else (known, middle)
    return known


def _is_out_of_memory(error: BaseException) -> bool:
    """The CPU's allocator raises a plain RuntimeError, and libraries that it serves one of their own."""
    phrases = ("DefaultCPUAllocator", "bad_alloc", "could not create a memory")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        phrase in str(error) for phrase in phrases
    )


def _reserve_state(sides: Sequence[Side]) -> list[Tensor]:
    """Tensors as large as the state that the optimizers have after their first step."""
    reserved = []
    for side in sides:
        copies = 2 if "betas" in side.optimizer.defaults else 1 if side.optimizer.defaults["momentum"] else 0
        fresh = [p for p in side.parameters() if p not in side.optimizer.state]
        reserved += [torch.zeros_like(parameter) for parameter in fresh for _ in range(copies)]
    return reserved


@contextmanager
def _unchanged(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Restore buffers, gradients (to none) and random state at the end."""
    buffers = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
    random_devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=random_devices):
            yield
    finally:
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])
        for parameter in model.parameters():
            parameter.grad = None
