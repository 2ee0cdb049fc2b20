"""How the ranks find one another, and a second way for them to talk, apart from the model's collectives."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store

from lgd.ranks.store import RanksError, in_time, launcher_serves

T = TypeVar("T")

_SECONDS_BETWEEN_ROLLS = 0.05

_PATIENCE_SECONDS = 10.0
"""How long the ranks that gave up wait for others to do so, before they call them missing."""


@contextmanager
def losing_store(rank: int, host: str) -> Iterator[None]:
    """Turn the error of a store that is gone into one that says whose end the reason is.

    Args:
        rank: this one.
        host: of rank 0.

    Raises:
        RanksError: the store is gone.
    """
    try:
        yield
    except dist.DistNetworkError as error:
        here = f"rank {rank} on {socket.gethostname()}"
        raise RanksError(f"{here} lost {_keeper(host)}; see its message. {_first_line(error)}") from error


def _keeper(host: str) -> str:
    whom = f"the launcher on {os.environ['MASTER_ADDR']}" if launcher_serves() else f"rank 0 on {host}"
    return f"{whom}, which keeps the ranks' store"


def _ask(question: Callable[[], T], rank: int, host: str, seconds: float) -> T:
    """Return what a question to the store is answered.

    Torch waits for the answer without end: also where rank 0 hangs, or its host is cut off.

    Raises:
        RanksError: the store is gone, or there is no answer after `seconds`; or as `question` does.
    """

    def ask() -> T:
        with losing_store(rank, host):
            return question()

    try:
        return in_time(ask, seconds)
    except TimeoutError as error:
        raise RanksError(
            f"rank {rank} on {socket.gethostname()} waited {seconds:g} s in vain for the answer of "
            f"{_keeper(host)}: it hangs, or is cut off"
        ) from error


def call_roll(store: Store, rank: int, world_size: int, timeout_seconds: float) -> tuple[Store, list[str]]:
    """Wait until every rank has come.

    Torchrun's own store outlives a restart of the workers, with all that the ones before have written. So
    each rank comes with a name never used before; rank 0 lists the names that it sees, until all ranks find
    their own in the list.

    Args:
        store: as from `open_store`.
        rank: this one.
        world_size: ranks to wait for.
        timeout_seconds: how long.

    Returns:
        A part of the store that only these ranks use, and the host of each rank.

    Raises:
        RanksError: some did not come within the time-out; they are named. Or rank 0 has gone meanwhile.
    """
    host = os.environ.get("MASTER_ADDR", "its host")
    return _ask(
        partial(_call_roll, store, rank, world_size, timeout_seconds),
        rank,
        host,
        timeout_seconds + _PATIENCE_SECONDS,
    )


def _call_roll(store: Store, rank: int, world_size: int, timeout_seconds: float) -> tuple[Store, list[str]]:
    name = f"{socket.gethostname()}/{uuid.uuid4().hex}"
    store.set(f"name/{rank}", name)
    deadline = time.monotonic() + timeout_seconds
    names: list[str] = []
    while True:
        if rank == 0:
            names = [_look_up(store, f"name/{r}") for r in range(world_size)]
            store.set("names", json.dumps(names))
        else:
            names = json.loads(_look_up(store, "names") or "[]")
        key = hashlib.sha256(json.dumps(names).encode()).hexdigest()
        is_listed = len(names) == world_size and names[rank] == name
        if is_listed:
            store.set(f"agrees/{rank}", key)
        missing = [r for r in range(world_size) if _look_up(store, f"agrees/{r}") != key] if rank == 0 else []
        if rank == 0 and not missing:
            store.set("complete", key)
        if is_listed and _look_up(store, "complete") == key:
            return PrefixStore(key, store), [name.partition("/")[0] for name in names]
        if time.monotonic() > deadline:
            raise _not_all_came(rank, timeout_seconds, missing, names)
        time.sleep(_SECONDS_BETWEEN_ROLLS)


def _look_up(store: Store, key: str) -> str:
    return store.get(key).decode() if store.check([key]) else ""


def _not_all_came(rank: int, timeout_seconds: float, missing: list[int], names: list[str]) -> RanksError:
    hosts = sorted({name.partition("/")[0] for r, name in enumerate(names) if name and r not in missing})
    whom = (
        f"rank{'s' * (len(missing) > 1)} {', '.join(map(str, missing))}"
        if rank == 0
        else "the others, which rank 0 names"
    )
    return RanksError(
        f"rank {rank} on {socket.gethostname()} waited {timeout_seconds:g} s (TRAIN.PROCESS_GROUP_TIMEOUT) "
        f"in vain for {whom}" + (f"; those that came are on {', '.join(hosts)}" if rank == 0 else "")
    )


class Channel:
    """The ranks' second way to talk: on gloo and the store, apart from the model's collectives and any GPU.

    All ranks call `any`, `vote` and `meet` in the same order.
    """

    def __init__(
        self,
        store: Store | None,
        group: dist.ProcessGroup | None,
        hosts: Sequence[str],
        timeout_seconds: float,
    ) -> None:
        """Use a store and a gloo group, or for a process alone neither."""
        self._store = store
        self._group = group
        self._hosts = hosts
        self._timeout_seconds = timeout_seconds
        self._vote: tuple[dist.Work, Tensor] | None = None

    @property
    def store(self) -> Store | None:
        """What the ranks keep in common; None for a process alone."""
        return self._store

    @property
    def hosts(self) -> Sequence[str]:
        """Of the ranks."""
        return self._hosts

    @classmethod
    def alone(cls) -> Channel:
        """The channel of a process alone."""
        return cls(None, None, (), 0.0)

    @classmethod
    def open(cls, store: Store, hosts: Sequence[str], timeout_seconds: float) -> Channel:
        """Open a channel for all ranks of the process group, each of which calls this.

        Args:
            store: as from `call_roll`.
            hosts: likewise.
            timeout_seconds: how long ranks wait for one another.
        """
        group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_seconds))
        assert isinstance(group, dist.ProcessGroup)
        return cls(store, group, hosts, timeout_seconds)

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true on any rank; waits for all of them."""
        if self._group is None:
            return flag
        votes = torch.tensor([int(flag)])
        with collective("agreeing on whether to leave (all-reduce)"):
            dist.all_reduce(votes, dist.ReduceOp.MAX, self._group)
        return bool(votes)

    def vote(self, flag: bool) -> bool:
        """Whether `flag` was true on any rank at the call before this one; of this call, for a process alone.

        For every step of a training: what it asks is answered while the next step runs, so nobody waits, and
        all ranks get the same answer at the same step.
        """
        if self._group is None:
            return flag
        answer = False
        if self._vote is not None:
            work, votes = self._vote
            with collective("agreeing on whether to leave (all-reduce)"):
                work.wait()
            answer = bool(votes)
        votes = torch.tensor([int(flag)])
        work = dist.all_reduce(votes, dist.ReduceOp.MAX, self._group, async_op=True)
        assert work is not None
        self._vote = (work, votes)
        return answer

    def close(self) -> None:
        """Let the last vote end, which nobody asked for."""
        if self._vote is not None:
            self._vote[0].wait()
            self._vote = None

    def announce(self, news: str) -> None:
        """Let the other ranks know, whatever they are doing: those that ask `has_heard`."""
        if self._store is not None:
            with losing_store(dist.get_rank(), self._hosts[0]):
                self._store.set(f"news/{news}", "")

    def has_heard(self, news: str) -> bool:
        """Whether a rank has announced it; asks rank 0's host, once a second would be often.

        Raises:
            RanksError: rank 0 is gone, or does not answer within the time-out.
        """
        if self._store is None:
            return False
        question = partial(self._store.check, [f"news/{news}"])
        return bool(_ask(question, dist.get_rank(), self._hosts[0], self._timeout_seconds))

    def meet(self, place: str) -> None:
        """Wait for all ranks.

        Raises:
            RanksError: some did not come within the time-out; they and their hosts are named.
        """
        if self._group is None:
            return
        try:
            dist.monitored_barrier(self._group, timedelta(seconds=self._timeout_seconds), wait_all_ranks=True)
        except RuntimeError as error:
            error.add_note("waiting for all ranks (monitored barrier)")
            raise self._explain(error, place) from error

    @contextmanager
    def explaining(self, place: Callable[[], str]) -> Iterator[None]:
        """Turn the errors of collectives into `RanksError`, which names who is missing.

        Args:
            place: what the run is doing when it happens, such as "step 7".
        """
        try:
            yield
        except RuntimeError as error:
            if self._store is None or isinstance(error, RanksError) or not _is_of_collective(error):
                raise
            raise self._explain(error, place()) from error

    def _explain(self, error: RuntimeError, place: str) -> RanksError:
        """Find out who is to blame that a collective failed.

        Every rank that gives up says so in the store; those that say nothing are dead, hang, or are cut off.
        """
        silent: list[str] = []
        thread = threading.Thread(target=self._find_silent, args=(error, silent), daemon=True)
        thread.start()
        thread.join(_PATIENCE_SECONDS + 5.0)  # asking a host that is cut off never ends
        if thread.is_alive():
            silent = [_keeper(self._hosts[0])]
        whom = (
            f"nothing is heard of {', '.join(silent)}" if silent else "all ranks gave up, see their messages"
        )
        what = next(iter(getattr(error, "__notes__", ())), "averaging the gradients (all-reduce)")
        return RanksError(
            f"rank {dist.get_rank()} on {socket.gethostname()} gave up {what} at {place}; {whom}. Ranks wait "
            f"{self._timeout_seconds:g} s for one another (TRAIN.PROCESS_GROUP_TIMEOUT). {_first_line(error)}"
        )

    def _find_silent(self, error: RuntimeError, silent: list[str]) -> None:
        """Give up in the store, wait for the others to do so, and add those that do not to `silent`."""
        assert self._store is not None
        # After a time-out the others may be some seconds behind; a lost connection all notice at once.
        patience = _PATIENCE_SECONDS if "timed out" in str(error).lower() else 0.3 * _PATIENCE_SECONDS
        deadline = time.monotonic() + patience
        try:
            self._store.set(f"gave_up/{dist.get_rank()}", "")
            missing = list(range(dist.get_world_size()))
            while missing and time.monotonic() < deadline:
                missing = [rank for rank in missing if not self._store.check([f"gave_up/{rank}"])]
                time.sleep(0.1)
            silent += [f"rank {rank} on {self._hosts[rank]}" for rank in missing]
        except RuntimeError:
            silent.append(_keeper(self._hosts[0]))


@contextmanager
def collective(name: str) -> Iterator[None]:
    """Name what is done in the block: an error of it carries the name as a note."""
    try:
        yield
    except RuntimeError as error:
        error.add_note(name)
        raise


def _is_of_collective(error: RuntimeError) -> bool:
    """Whether other ranks are the cause. Gloo's errors have no type of their own, but its files' names."""
    return isinstance(error, dist.DistError) or "gloo" in str(error).lower()


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]
