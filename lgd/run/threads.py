"""How many threads compute a training on the CPU."""

from __future__ import annotations

import os
from collections.abc import Iterator

import torch

from lgd.engine.checkpoint import Checkpoint
from lgd.ranks import process_group
from lgd.ranks.cores import CoresWatch, count_cores
from lgd.words import counted

_SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def settle_threads(device: torch.device, cores: CoresWatch, checkpoint: Checkpoint | None) -> Iterator[str]:
    """Let torch have a thread for each free core: one that shares its core is what all the others wait for.

    A run that goes on keeps the number that it began with, since with another one sums are rounded otherwise.
    Several ranks, other devices, and a number that the environment gives are left as they are.

    Args:
        device: where the model lies.
        cores: since the program was started.
        checkpoint: where the run goes on; None begins anew.

    Yields:
        A line, where the number is not the usual one.
    """
    if device.type != "cpu" or process_group.get_world_size() > 1 or any(map(os.environ.get, _SETTINGS)):
        return
    usual = min(torch.get_num_threads(), count_cores())
    taken = min(cores.count_taken(), count_cores())
    number = max(1, min(usual, count_cores() - taken))
    reason = f"other work keeps {taken} of {counted(count_cores(), 'core')} busy"
    saved = checkpoint.state.get("threads") if checkpoint else None
    if isinstance(saved, int) and saved > 0:
        number, reason = min(saved, usual), f"the run began with {saved}"
    torch.set_num_threads(number)
    if number != usual or saved not in (None, number):
        yield f"{counted(number, 'thread')}: {reason}; OMP_NUM_THREADS={usual} takes all"
