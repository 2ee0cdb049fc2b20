"""Process groups: the only file, with `lgd.ranks.channel`, that starts, asks or closes them.

Every function works without a process group too, as one rank of one.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from lgd.config.values import ConfigError
from lgd.ranks.channel import Channel, call_roll, collective, losing_store
from lgd.ranks.reach import keep_to_loopback, require_interfaces
from lgd.ranks.store import RanksError, is_one_machine, open_store

T = TypeVar("T")

_NCCL_EXTRA_SECONDS = 60.0
"""Where the GPUs hang the host is to notice first, on the channel: it can say who is missing."""

_STEP_SECONDS = 5.0
"""How often ranks that wait for a long task meet, so that no wait comes near a group's time-out."""

_ALONE: ContextVar[bool] = ContextVar("alone", default=False)
"""Whether this rank acts for the moment as if it were one of one."""


@dataclass(frozen=True)
class LaunchInfo:
    """Where this process stands among all: set by torchrun, or one process alone."""

    rank: int
    local_rank: int
    world_size: int

    @classmethod
    def from_environment(cls) -> LaunchInfo:
        """Read RANK, LOCAL_RANK and WORLD_SIZE as torchrun sets them; (0, 0, 1) without."""
        return cls(
            rank=int(os.environ.get("RANK", "0")),
            local_rank=int(os.environ.get("LOCAL_RANK", "0")),
            world_size=int(os.environ.get("WORLD_SIZE", "1")),
        )


def select_device(name: str, local_rank: int) -> torch.device:
    """Choose this rank's device.

    Args:
        name: "auto" (CUDA where there is one), "cuda" or "cpu".
        local_rank: which device of this machine.

    Raises:
        ConfigError: CUDA asked for and not there, or more ranks than devices.
    """
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError(
            f"MODEL.DEVICE is {name!r} but torch sees no CUDA device; set MODEL.DEVICE cpu or auto"
        )
    if local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"local rank {local_rank} has no device: this machine shows {torch.cuda.device_count()}; "
            "start fewer processes per node"
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


def init(device: torch.device, timeout_seconds: float) -> Channel:
    """Join the process group that the launcher's environment describes (nccl on CUDA, else gloo).

    A single process that no launcher started joins none.

    Args:
        device: of this rank.
        timeout_seconds: how long a rank waits for the others before it gives up.

    Returns:
        The ranks' second way to talk.

    Raises:
        RanksError: a rank did not come within the time-out, or they cannot talk to one another.
        ConfigError: an interface is not there, or cannot be reached; or the port for the meeting is taken.
    """
    launch = LaunchInfo.from_environment()
    if launch.world_size == 1:
        return Channel.alone()
    on_cuda = device.type == "cuda"
    if is_one_machine():
        keep_to_loopback()
    everyones = open_store(launch.rank, launch.world_size, timeout_seconds)
    store, hosts = call_roll(everyones, launch.rank, launch.world_size, timeout_seconds)
    try:
        with losing_store(launch.rank, hosts[0]):
            require_interfaces(store, launch.rank, hosts)
            dist.init_process_group(
                backend="nccl" if on_cuda else "gloo",
                store=store,
                rank=launch.rank,
                world_size=launch.world_size,
                timeout=timedelta(seconds=timeout_seconds + (_NCCL_EXTRA_SECONDS if on_cuda else 0)),
                device_id=device if on_cuda else None,
            )
            return Channel.open(store, hosts, timeout_seconds)
    except RanksError:
        raise
    except RuntimeError as error:
        raise RanksError(
            f"rank {launch.rank} on {hosts[launch.rank]} cannot join the others: "
            f"{str(error).splitlines()[0]}. Which interface is used: GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME"
        ) from error


def shutdown() -> None:
    """Leave the process group, if there is one."""
    if is_initialized():
        dist.destroy_process_group()


def is_initialized() -> bool:
    """Whether this process belongs to a process group."""
    return dist.is_available() and dist.is_initialized() and not _ALONE.get()


@contextmanager
def alone() -> Iterator[None]:
    """Act as one rank of one meanwhile: what may fail on this rank alone must not keep others waiting."""
    token = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(token)


def get_rank() -> int:
    """This process's rank, 0 alone."""
    return dist.get_rank() if is_initialized() else 0


def get_world_size() -> int:
    """The number of processes, 1 alone."""
    return dist.get_world_size() if is_initialized() else 1


def is_main() -> bool:
    """Whether this is rank 0, the one that writes files."""
    return get_rank() == 0


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Return the sum of `tensor` over the ranks, as a new tensor on its device; no gradient."""
    if not is_initialized():
        return tensor
    total = tensor.detach().clone()
    with collective("summing over the ranks (all-reduce)"):
        dist.all_reduce(total)
    return total


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether `flag` is true on any rank; every rank gets the same answer."""
    if not is_initialized():
        return flag
    tensor = torch.tensor([int(flag)], device=device)
    with collective("asking all ranks (all-reduce)"):
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return bool(tensor.item())


def gather_objects(value: Any) -> list[Any] | None:
    """Collect a picklable value of every rank on rank 0, in rank order; None on the others."""
    if not is_initialized():
        return [value]
    gathered: list[Any] | None = [None] * get_world_size() if is_main() else None
    with collective("collecting on rank 0 (gather)"):
        dist.gather_object(value, gathered)
    return gathered


def broadcast_object(value: Any) -> Any:
    """Return rank 0's value on every rank."""
    if not is_initialized():
        return value
    holder = [value]
    with collective("waiting for rank 0's answer (broadcast)"):
        dist.broadcast_object_list(holder)
    return holder[0]


def on_main_first(function: Callable[[], T]) -> T:
    """Run `function` on rank 0, then on the others, so that one rank fills a cache for all.

    Raises:
        Exception: whatever `function` raises; a failure of rank 0 is raised on every rank.
    """
    if not is_initialized():
        return function()
    error: Exception | None = None
    result: T | None = None
    if is_main():
        try:
            result = function()
        except Exception as caught:
            error = caught
    error = broadcast_object(error)
    if error is not None:
        raise error
    return result if is_main() else function()  # type: ignore[return-value]


def on_first_of_node(function: Callable[[], T]) -> T:
    """Run `function` on one rank of every node while the node's others wait, then on these.

    It may take longer than the process group's time-out: the ranks meet every few seconds meanwhile.

    Raises:
        Exception: whatever `function` raises; a failure on any node is raised on every rank.
    """
    if not is_initialized():
        return function()
    is_first = LaunchInfo.from_environment().local_rank == 0
    result = _meet_while(function if is_first else None)
    return result if is_first else function()  # type: ignore[return-value]


def on_main_alone(function: Callable[[], T]) -> T | None:
    """Run `function` on rank 0 while the others wait; its result there, None on the others.

    It may take longer than the process group's time-out.

    Raises:
        Exception: whatever `function` raises, on every rank.
    """
    if not is_initialized():
        return function()
    return _meet_while(function if is_main() else None)


def _meet_while(function: Callable[[], T] | None) -> T | None:
    """Run `function`, on the ranks that have one, beside meetings of all ranks every few seconds."""
    outcome: dict[str, Any] = {}

    def work() -> None:
        try:
            outcome["result"] = function() if function else None
        except Exception as caught:
            outcome["error"] = caught

    thread = threading.Thread(target=work, daemon=True)
    if function:
        thread.start()
    while True:
        if function:
            thread.join(_STEP_SECONDS)
        states = all_gather_objects((thread.is_alive(), outcome.get("error")))
        for _, error in states:
            if error is not None:
                raise error
        if not any(busy for busy, _ in states):
            return outcome.get("result")


def all_gather_objects(value: Any) -> list[Any]:
    """Collect a picklable value of every rank on every rank, in rank order."""
    if not is_initialized():
        return [value]
    gathered: list[Any] = [None] * get_world_size()
    with collective("collecting from all ranks (all-gather)"):
        dist.all_gather_object(gathered, value)
    return gathered
