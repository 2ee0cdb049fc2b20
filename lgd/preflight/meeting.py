"""Where the ranks meet before any process group stands: a store that rank 0 or its launcher serves."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable
from typing import Any

from torch import distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store

from lgd.preflight.place import Place
from lgd.ranks.store import LOOPBACK, PortTakenError, UnreachableError, connect, in_time, serve

_PAUSE_SECONDS = 0.1

_ANSWER_SECONDS = 30.0
"""For one answer of the store, which torch would wait for without end where rank 0 hangs or is cut off."""


class MeetingError(RuntimeError):
    """The ranks cannot meet; the message says where, and what to do."""


class Meeting:
    """Messages between ranks. It needs no more than a way to rank 0, so that it can tell what else fails."""

    def __init__(self, store: Store, rank: int) -> None:
        """Speak as `rank` over `store`; `open_meeting` finds one."""
        self.store = PrefixStore("preflight", store)
        self.rank = rank

    def post(self, topic: str, content: Any) -> None:
        """Leave this rank's message (anything JSON holds) on `topic`."""
        self._do(lambda: self.store.set(f"{topic}/{self.rank}", json.dumps(content)))

    def collect(self, topic: str, ranks: Iterable[int], seconds: float) -> dict[int, Any]:
        """Wait up to `seconds` for the messages of `ranks`; return those that came."""
        missing, found = sorted(ranks), dict[int, Any]()
        deadline = time.monotonic() + seconds
        while True:
            for rank in missing:
                if self._do(lambda rank=rank: self.store.check([f"{topic}/{rank}"])):  # type: ignore[misc]
                    found[rank] = self._read(f"{topic}/{rank}")
            missing = [rank for rank in missing if rank not in found]
            if not missing or time.monotonic() > deadline:
                return dict(sorted(found.items()))
            time.sleep(_PAUSE_SECONDS)

    def announce(self, topic: str, content: Any) -> None:
        """Tell all ranks."""
        self._do(lambda: self.store.set(topic, json.dumps(content)))

    def hear(self, topic: str, seconds: float) -> Any:
        """Wait for an announcement.

        Raises:
            MeetingError: none came in time.
        """
        deadline = time.monotonic() + seconds
        while not self._do(lambda: self.store.check([topic])):
            if time.monotonic() > deadline:
                raise MeetingError(
                    f"rank 0 is there no more, or never was: no word of it ({topic}) in {seconds:.0f} s; "
                    "look at its output"
                )
            time.sleep(_PAUSE_SECONDS)
        return self._read(topic)

    def _read(self, key: str) -> Any:
        return json.loads(self._do(lambda: self.store.get(key)))

    def _do(self, action: Callable[[], Any]) -> Any:
        try:
            return in_time(action, _ANSWER_SECONDS)
        except dist.DistError as error:
            raise MeetingError(f"lost the way to rank 0: {str(error).splitlines()[0]}") from error
        except TimeoutError as error:
            raise MeetingError(
                f"no answer of rank 0 in {_ANSWER_SECONDS:.0f} s: it hangs, or the way to it is cut"
            ) from error


def open_meeting(place: Place, seconds: float) -> Meeting:
    """Reach the store at the launcher's address, waiting up to `seconds` for it.

    Raises:
        MeetingError: nobody serves it, or its port is taken.
    """
    if place.world_size == 1:
        return Meeting(dist.HashStore(), place.rank)  # type: ignore[attr-defined]
    served_by_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    serves = place.rank == 0 and not served_by_agent
    where = f"{place.master_address}:{place.master_port}"
    host = LOOPBACK if place.is_one_machine and not served_by_agent else place.master_address
    try:
        if serves:
            store, _ = serve(host, place.master_port, seconds=seconds)
        else:
            store = connect(host, place.master_port, seconds=seconds)
    except PortTakenError as error:
        raise MeetingError(f"rank 0 cannot listen at {where}: {error}") from None
    except UnreachableError as error:
        raise MeetingError(
            f"nobody answers at {where} (MASTER_ADDR:MASTER_PORT) in {seconds:.0f} s: rank 0 did not start, "
            f"its name resolves to another address here, or a firewall is between ({error})"
        ) from error
    # Restarted workers must not find what those before them left.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return Meeting(PrefixStore(f"attempt_{attempt}", store), place.rank)
