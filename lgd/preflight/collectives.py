"""How fast the ranks compute, and how fast they talk: between pairs of nodes, within nodes, all together.

This room alone, besides `lgd.ranks`, touches process groups: it has groups of its own, with short time-outs,
over whichever ranks have come.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.distributed_c10d import Store

_KIB, _MIB = 2**10, 2**20

SIZES = {
    "nccl": (_KIB, 16 * _KIB, 256 * _KIB, 4 * _MIB, 64 * _MIB, 256 * _MIB),
    "gloo": (_KIB, 16 * _KIB, 256 * _KIB, 4 * _MIB, 16 * _MIB),
}
"""Bytes that are all-reduced."""

_MATRIX_SIDE = {"nccl": 8192, "gloo": 256}
_FIRST_BYTES = 64 * _KIB
_LONG_SECONDS = 0.05
"""A message that takes this long is long enough to tell the bandwidth."""

_SECONDS_PER_SIZE = 0.4
_LONGEST_SECONDS = 4.0
"""A message expected to take longer is left out."""


@dataclass(frozen=True)
class Link:
    """One direction between two nodes.

    Attributes:
        source: rank that sent.
        target: rank that received.
        latency: seconds of a message of one byte, there.
        bandwidth: bytes a second.
    """

    source: int
    target: int
    latency: float
    bandwidth: float


@dataclass(frozen=True)
class AllReduce:
    """All-reduces of one size, as one rank timed them.

    Attributes:
        scope: "node": the ranks of one node; "between": one rank of each node; "all".
        num_ranks: that took part.
        num_bytes: of the message.
        seconds: median of one all-reduce.
    """

    scope: str
    num_ranks: int
    num_bytes: int
    seconds: float

    @property
    def bus_bandwidth(self) -> float:
        """Bytes a second over the slowest link of a ring: what the hardware's number can be held against."""
        return 2 * (self.num_ranks - 1) / self.num_ranks * self.num_bytes / self.seconds


@dataclass
class Measurement:
    """What one rank measured; filled on the way, so that a hang leaves what was done before.

    Attributes:
        stage: what it is at.
        compute: matrix products' floating-point operations a second.
        links: to other nodes, measured by their first ranks.
        all_reduces: in the order of their sizes.
        error: why it ended early, "" if it did not.
    """

    stage: str = "not begun"
    compute: float = 0.0
    links: list[Link] = field(default_factory=list)
    all_reduces: list[AllReduce] = field(default_factory=list)
    error: str = ""


def measure(
    result: Measurement,
    store: Store,
    rank: int,
    nodes: Mapping[str, Sequence[int]],
    device: torch.device,
    *,
    largest: int,
    timeout: float,
) -> None:
    """Measure everything, on all ranks of `nodes` together.

    Args:
        result: filled in.
        store: through which the group finds together.
        rank: this one.
        nodes: the ranks of each node.
        device: this rank's.
        largest: bytes of the largest message.
        timeout: seconds that a collective waits for the others.
    """
    backend = "nccl" if device.type == "cuda" else "gloo"
    ranks = sorted(rank for members in nodes.values() for rank in members)
    number = {
        rank: i for i, rank in enumerate(ranks)
    }  # some may be missing: the group counts those that came
    result.stage = "matrix products"
    result.compute = _compute_speed(device, _MATRIX_SIDE[backend])
    if len(ranks) == 1:
        return
    result.stage = f"joining a {backend} group of {len(ranks)} ranks"
    # A hang is told by the caller's own clock; the watchdog would end the process before it can speak.
    os.environ["TORCH_NCCL_ASYNC_ERROR_HANDLING"] = "0"
    dist.init_process_group(
        backend,
        store=store,
        rank=number[rank],
        world_size=len(ranks),
        timeout=timedelta(seconds=timeout),
        device_id=device if backend == "nccl" else None,
    )
    sizes = [size for size in SIZES[backend] if size <= largest]
    leaders = [members[0] for members in nodes.values()]
    if rank in leaders:
        _measure_links(
            result, rank, leaders, number, device, min(largest, 8 * _MIB if backend == "gloo" else largest)
        )
    dist.barrier()
    for scope, groups in (("node", list(nodes.values())), ("between", [leaders]), ("all", [ranks])):
        if scope == "all" and (len(nodes) == 1 or len(leaders) == len(ranks)):
            continue  # the same ranks as before
        own_size = 0
        result.stage = f"making the groups of scope {scope!r}"
        for members in groups:
            # Every rank takes part in the making of every group; the groups then work side by side.
            group = dist.new_group([number[member] for member in members], timedelta(seconds=timeout))
            if rank in members and isinstance(group, dist.ProcessGroup):
                own, own_size = group, len(members)
        if own_size > 1:
            _measure_all_reduces(result, scope, own_size, own, sizes, device)
        dist.barrier()


def round_robin(members: Sequence[int]) -> list[list[tuple[int, int]]]:
    """Pair everyone with everyone once, in rounds in which nobody is in two pairs (the circle method)."""
    ring: list[int | None] = [*members, *([None] if len(members) % 2 else [])]
    rounds = []
    for _ in range(len(ring) - 1):
        pairs = [(ring[i], ring[-1 - i]) for i in range(len(ring) // 2)]
        rounds.append([(a, b) for a, b in pairs if a is not None and b is not None])
        ring = [ring[0], ring[-1], *ring[1:-1]]
    return rounds


def _compute_speed(device: torch.device, side: int) -> float:
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    matrix = torch.ones(side, side, dtype=dtype, device=device)
    times = []
    for _ in range(8):
        _wait(device)
        begin = time.perf_counter()
        matrix @ matrix
        _wait(device)
        times.append(time.perf_counter() - begin)
    return 2 * side**3 / min(times[2:])


def _measure_links(
    result: Measurement,
    rank: int,
    leaders: Sequence[int],
    number: Mapping[int, int],
    device: torch.device,
    largest: int,
) -> None:
    rounds = round_robin(leaders)
    seconds = min(0.5, 10 / max(1, len(rounds)))
    for pairs in rounds:
        for first, second in pairs:
            if rank not in (first, second):
                continue
            peer = second if rank == first else first
            wire = _Wire(number[peer], device, largest)
            for source in (first, second):
                result.stage = f"link from rank {source} to rank {first + second - source}"
                if rank == source:
                    latency, bandwidth = wire.measure(seconds)
                    result.links.append(Link(rank, peer, latency, bandwidth))
                else:
                    wire.answer()


class _Wire:
    """Messages to one other rank, each acknowledged. A header says how long the message is; 0 ends."""

    def __init__(self, peer: int, device: torch.device, largest: int) -> None:
        self.peer = peer
        self.device = device
        self.message = torch.zeros(largest, dtype=torch.uint8, device=device)
        self.header = torch.zeros(1, dtype=torch.int64, device=device)
        self.receipt = torch.zeros(1, dtype=torch.uint8, device=device)

    def measure(self, seconds: float) -> tuple[float, float]:
        """Return latency (seconds, one way) and bandwidth (bytes a second).

        The shortest of several times counts: a busy host holds single messages up, a slow link all of them.
        """
        self._exchange(1)
        end = time.perf_counter() + seconds
        round_trip = self._shortest(1, 5, end)
        size = min(_FIRST_BYTES, len(self.message))
        taken = self._shortest(size, 3, end)
        while taken - round_trip < _LONG_SECONDS and size < len(self.message):
            size = min(8 * size, len(self.message))
            taken = self._shortest(size, 3, end)
        self.header.zero_()
        dist.send(self.header, self.peer)
        # Less the way there and back, unless that is most of it: then the difference would be noise.
        return round_trip / 2, size / max(taken - round_trip, taken / 2)

    def _shortest(self, size: int, count: int, end: float) -> float:
        """The shortest of `count` times, or of fewer if that would take too long; of one at least."""
        shortest = self._exchange(size)
        for _ in range(count - 1):
            if time.perf_counter() < end:
                shortest = min(shortest, self._exchange(size))
        return shortest

    def answer(self) -> None:
        while True:
            dist.recv(self.header, self.peer)
            size = int(self.header.item())
            if size == 0:
                return
            dist.recv(self.message[:size], self.peer)
            dist.send(self.receipt, self.peer)

    def _exchange(self, size: int) -> float:
        begin = time.perf_counter()
        self.header.fill_(size)
        dist.send(self.header, self.peer)
        dist.send(self.message[:size], self.peer)
        dist.recv(self.receipt, self.peer)
        _wait(self.device)
        return time.perf_counter() - begin


def _measure_all_reduces(
    result: Measurement,
    scope: str,
    num_ranks: int,
    group: dist.ProcessGroup,
    sizes: Sequence[int],
    device: torch.device,
) -> None:
    for size, next_size in zip(sizes, [*sizes[1:], 0], strict=True):
        result.stage = f"all-reduce of {size} bytes, scope {scope!r}"
        message = torch.zeros(size // 4, device=device)
        _time_all_reduce(message, group, device)
        # All ranks must stop at the same size, so they agree on the time.
        taken = torch.tensor([_time_all_reduce(message, group, device)], device=device)
        dist.all_reduce(taken, dist.ReduceOp.MAX, group)
        slowest = float(taken.item())
        repeats = max(1, min(20, int(_SECONDS_PER_SIZE / slowest)))
        times = [_time_all_reduce(message, group, device) for _ in range(repeats)]
        result.all_reduces.append(AllReduce(scope, num_ranks, size, statistics.median(times)))
        if slowest * next_size / size > _LONGEST_SECONDS and slowest > _LONG_SECONDS:
            return


def _time_all_reduce(message: Tensor, group: dist.ProcessGroup, device: torch.device) -> float:
    begin = time.perf_counter()
    dist.all_reduce(message, group=group)
    _wait(device)
    return time.perf_counter() - begin


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
