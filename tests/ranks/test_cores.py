"""How many cores there are for a process, and how many other work takes."""

import os

import pytest

from lgd.ranks import cores
from lgd.ranks.cores import CoresWatch, count_cores

TICKS = os.sysconf("SC_CLK_TCK")


def stat(*busy, nice=0):
    """/proc/stat of cores that were busy for so many seconds each, and otherwise idle, waiting or stolen."""
    lines = [
        f"cpu{core} {int(seconds * TICKS)} {int(nice * TICKS)} 0 900 70 0 0 50 0 0"
        for core, seconds in enumerate(busy)
    ]
    return "\n".join([f"cpu  {int(sum(busy) * TICKS)} 0 0 0 0 0 0 0 0 0", *lines, "intr 1 2", "ctxt 3"])


@pytest.fixture
def machine(monkeypatch):
    """A machine of four cores: its files by path, its clock, and the work of this process."""
    files, clock = {}, {"at": 100.0, "own": 1.0}
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(cores, "_read", lambda path: files.get(path, ""))
    monkeypatch.setattr(cores.time, "monotonic", lambda: clock["at"])
    monkeypatch.setattr(os, "times", lambda: os.times_result((clock["own"], 0.5, 0.0, 0.0, clock["at"])))
    return files, clock


@pytest.mark.parametrize(
    ("busy", "own", "taken"),
    [
        ((0, 0, 0, 0), 0, 0),
        ((2, 0, 0, 0), 2, 0),  # it is us
        ((2, 2, 0, 0), 2, 1),
        ((1.6, 2, 0, 0), 2, 1),  # what is as good as one
        ((1.2, 2, 0, 0), 2, 0),  # half a core
        ((2, 2, 2, 0), 2, 2),
        ((2, 2, 2, 2), 0, 4),
    ],
)
def test_busy_cores_of_others_are_counted(machine, busy, own, taken):
    files, clock = machine
    files["/proc/stat"] = stat(1, 5, 7, 9)
    watch = CoresWatch.begin()
    clock["at"] += 2
    clock["own"] += own
    files["/proc/stat"] = stat(*(before + more for before, more in zip((1, 5, 7, 9), busy, strict=True)))
    assert watch.count_taken() == taken


def test_what_runs_at_a_low_priority_makes_way(machine):
    files, clock = machine
    files["/proc/stat"] = stat(1, 1, 1, 1)
    watch = CoresWatch.begin()
    clock["at"] += 2
    files["/proc/stat"] = stat(1, 1, 1, 1, nice=2)
    assert watch.count_taken() == 0


def test_cores_that_are_not_ours_do_not_count(machine, monkeypatch):
    files, clock = machine
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {2, 3})
    files["/proc/stat"] = stat(0, 0, 0, 0)
    watch = CoresWatch.begin()
    clock["at"] += 2
    files["/proc/stat"] = stat(2, 2, 2, 0)
    assert watch.count_taken() == 1
    assert count_cores() == 2


@pytest.mark.parametrize("text", ["", "cpu0 1\n", "cpu0 a b c d e f g\n"])
def test_where_nobody_counts_none_is_taken(machine, text):
    files, clock = machine
    files["/proc/stat"] = text
    watch = CoresWatch.begin()
    clock["at"] += 2
    assert watch.count_taken() == 0


def test_no_time_has_passed(machine):
    files, _ = machine
    files["/proc/stat"] = stat(1, 1, 1, 1)
    assert CoresWatch.begin().count_taken() == 0


@pytest.mark.parametrize(
    ("quota", "number"),
    [("max 100000", 4), ("200000 100000", 2), ("150000 100000", 1), ("50000 100000", 1), ("900000 100000", 4),
     ("", 4), ("1 0", 4), ("nonsense", 4)],
)  # fmt: skip
def test_a_quota_is_a_number_of_cores(machine, quota, number):
    files, _ = machine
    files["/sys/fs/cgroup/cpu.max"] = quota
    assert count_cores() == number


def test_a_quota_of_the_first_version(machine):
    files, _ = machine
    files["/sys/fs/cgroup/cpu/cpu.cfs_period_us"] = "100000\n"
    files["/sys/fs/cgroup/cpu/cpu.cfs_quota_us"] = "-1\n"
    assert count_cores() == 4
    files["/sys/fs/cgroup/cpu/cpu.cfs_quota_us"] = "300000\n"
    assert count_cores() == 3


def test_on_a_system_without_affinities(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    monkeypatch.setattr(cores, "_read", lambda path: "")
    assert count_cores() == 3
    assert CoresWatch.begin().count_taken() == 0


@pytest.mark.skipif(not os.path.exists("/proc/stat"), reason="Linux counts in /proc/stat")  # noqa: PTH110
def test_this_machine_counts():
    watch = CoresWatch.begin()
    end = sum(os.times()[:2]) + 0.3
    while sum(os.times()[:2]) < end:
        pass
    now = CoresWatch.begin()
    assert now.own_work - watch.own_work >= 0.29
    assert now.all_work - watch.all_work >= now.own_work - watch.own_work - 0.1
