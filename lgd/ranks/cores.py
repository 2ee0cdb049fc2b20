"""Processor cores: how many this process may use, and how many of them other work keeps busy."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Set
from dataclasses import dataclass
from pathlib import Path

_TAKEN = 0.75
"""Share of a core from which on it counts as taken."""

_QUOTAS = (
    ("/sys/fs/cgroup/cpu.max",),
    ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "/sys/fs/cgroup/cpu/cpu.cfs_period_us"),
)
"""Where Linux keeps the quota and the period of this process's group, both in microseconds: versions 2, 1."""


def count_cores() -> int:
    """Cores that this process may use, at least 1: by its affinity and, in a container, by its quota."""
    return max(1, min([len(_cores()), *_quotas()]))


def _cores() -> Set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _quotas() -> Iterator[int]:
    """Whole cores' worth of time that the group of this process may use; nothing without a limit."""
    for paths in _QUOTAS:
        words = " ".join(map(_read, paths)).split()
        if len(words) == 2 and all(word.isdecimal() for word in words) and int(words[1]):
            yield int(words[0]) // int(words[1])


@dataclass(frozen=True)
class CoresWatch:
    """What the cores of this process have done until a moment: the beginning of a measurement.

    Attributes:
        at: that moment, in seconds of `time.monotonic`.
        all_work: seconds of work, of everyone, on the cores of this process; None where nobody counts it.
        own_work: seconds of work of this process.
    """

    at: float
    all_work: float | None
    own_work: float

    @classmethod
    def begin(cls) -> CoresWatch:
        """Look now."""
        times = os.times()
        return cls(time.monotonic(), _count_work(), sum(times[:4]))

    def count_taken(self) -> int:
        """Cores that other work has kept busy since; 0 where that is not known.

        What runs at a lower priority (`nice`) makes way, and is not counted.
        """
        now = self.begin()
        seconds = now.at - self.at
        if self.all_work is None or now.all_work is None or seconds <= 0:
            return 0
        others = (now.all_work - self.all_work) - (now.own_work - self.own_work)
        return max(0, int(others / seconds + 1 - _TAKEN))


def _count_work() -> float | None:
    """Seconds that the cores of this process have worked since the machine started, by Linux's count."""
    cores = {f"cpu{core}" for core in _cores()}
    found = [sum(ticks) for name, ticks in _read_ticks() if name in cores]
    return sum(found) / os.sysconf("SC_CLK_TCK") if found else None


def _read_ticks() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Each core's name and its ticks of work: user, system and both kinds of interrupts, as in proc(5)."""
    for line in _read("/proc/stat").splitlines():
        name, *words = line.split()
        if name.startswith("cpu") and len(words) >= 7 and all(word.isdecimal() for word in words):
            user, _, system, _, _, hard, soft = map(int, words[:7])
            yield name, (user, system, hard, soft)


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
