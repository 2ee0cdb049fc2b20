"""What a training may use of this machine."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from lgd.layers.bfloat16 import multiplies_bfloat16
from lgd.ranks.cores import count_cores
from lgd.words import counted

_GIB = 2**30


@dataclass(frozen=True)
class Machine:
    """Where a training runs.

    Attributes:
        device: of the model.
        ranks: workers that share a step's images.
        cores: processor cores for all of them.
        memory: GiB of each GPU; on the CPU GiB for all ranks together.
        multiplies_bfloat16: whether it does so faster than float32.
    """

    device: Literal["cuda", "cpu"]
    ranks: int
    cores: int
    memory: float
    multiplies_bfloat16: bool

    @property
    def memory_of_rank(self) -> float:
        """GiB that one rank may use for its model and batch."""
        return self.memory if self.device == "cuda" else self.memory / self.ranks

    @property
    def in_words(self) -> str:
        """What computes there."""
        return counted(self.ranks, "GPU") if self.device == "cuda" else counted(self.cores, "core")


def look_at_machine(ranks: int, device: Literal["auto", "cuda", "cpu"] = "auto") -> Machine:
    """Count the cores and the memory that this process may use."""
    cores = count_cores()
    if device != "cpu" and torch.cuda.is_available():
        smallest = min(
            torch.cuda.get_device_properties(k).total_memory
            for k in range(min(ranks, torch.cuda.device_count()))
        )
        return Machine("cuda", ranks, cores, smallest / _GIB, _is_fast_in_bfloat16("cuda"))
    return Machine("cpu", ranks, cores, _main_memory() / _GIB, _is_fast_in_bfloat16("cpu"))


def _is_fast_in_bfloat16(device: str) -> bool:
    return bool(multiplies_bfloat16(torch.device(device)))


def _main_memory() -> int:
    """Bytes that can be had: what is free, or the limit of this process's group where that is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [total]
    for line in _read("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            limits.append(1024 * int(line.split()[1]))
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        text = _read(path).strip()
        limits += [int(text)] if text.isdecimal() else []
    return min(limits)


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
