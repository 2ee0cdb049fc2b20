"""Where the launchers of a run meet, and how they learn their numbers."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.elastic import rendezvous
from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import C10dRendezvousBackend
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import create_handler

from lgd.config.values import ConfigError
from lgd.ranks.interfaces import list_interfaces, resolve
from lgd.ranks.store import (
    LOOPBACK,
    PortTakenError,
    UnreachableError,
    connect,
    find_free_port,
    is_here,
    is_loopback,
    serve,
)

_READ_SECONDS = 60
"""Torch's default of --rdzv-conf read_timeout: how long the launchers wait for the answer of their store."""

_PORT_SECONDS = 15.0
"""How long to look whether what has the meeting's port is a launcher of the same run."""

_KEY_SECONDS = 5.0
"""How long a launcher may take to say whose its store is."""

_ASK_SECONDS = 10.0
"""How long the question may take in all."""


@dataclass(frozen=True)
class Launch:
    """What to start, and how its machines find one another.

    Attributes:
        command: what every worker runs, behind the Python interpreter.
        num_workers: workers of this machine.
        min_machines: machines without which nothing starts.
        max_machines: machines that may take part; one alone meets nobody, and needs no endpoint.
        max_restarts: how often a lost worker may bring all of them back to the newest checkpoint.
        backend: "c10d", or "static" where every machine knows its number.
        endpoint: HOST:PORT at which the machines meet.
        run_id: the same on all machines of a run.
        settings: of the backend, as torchrun's --rdzv-conf.
        local_address: by which the others reach this machine; None asks its name.
        log_folder: where the workers' output is kept, a file each; None keeps it nowhere.
    """

    command: Sequence[str]
    num_workers: int
    min_machines: int = 1
    max_machines: int = 1
    max_restarts: int = 0
    backend: str = "c10d"
    endpoint: str = "localhost:0"
    run_id: str = "lgd"
    settings: dict[str, Any] = field(default_factory=dict)
    local_address: str | None = None
    log_folder: str | None = None

    @property
    def host(self) -> str:
        """The host of the endpoint."""
        return self.endpoint.rpartition(":")[0]

    @property
    def port(self) -> int:
        """The port of the endpoint."""
        return int(self.endpoint.rpartition(":")[2])

    @property
    def read_seconds(self) -> int:
        """How long this machine waits for the answer of the launchers' store."""
        return int(self.settings.get("read_timeout", _READ_SECONDS))


class _KnownMachines(rendezvous.RendezvousHandler):
    """A meeting of machines that know their numbers: who takes part never changes."""

    def __init__(self, launch: Launch, store: Store, rank: int) -> None:
        self._launch = launch
        self._store = PrefixStore(launch.run_id, store)
        self._rank = rank

    @property
    def use_agent_store(self) -> bool:
        return True

    def get_backend(self) -> str:
        return "static"

    def get_run_id(self) -> str:
        return self._launch.run_id

    def next_rendezvous(self) -> rendezvous.RendezvousInfo:
        workers_meet = rendezvous.RendezvousStoreInfo(self._launch.host, self._launch.port)
        return rendezvous.RendezvousInfo(self._store, self._rank, self._launch.max_machines, workers_meet)

    def is_closed(self) -> bool:
        return False

    def set_closed(self) -> None:
        pass

    def num_nodes_waiting(self) -> int:
        return 0

    def shutdown(self) -> bool:
        return True


class _OneMachine(_KnownMachines):
    """No meeting: the launcher listens nowhere, and its workers meet on loopback, at another port each time.

    They do not meet in a store of the launcher's, so that they can save and leave when it is killed.
    """

    def __init__(self, launch: Launch) -> None:
        super().__init__(launch, dist.HashStore(), 0)  # type: ignore[attr-defined]

    @property
    def use_agent_store(self) -> bool:
        return False

    def next_rendezvous(self) -> rendezvous.RendezvousInfo:
        workers_meet = rendezvous.RendezvousStoreInfo(LOOPBACK, find_free_port())
        return rendezvous.RendezvousInfo(self._store, 0, 1, workers_meet)


def open_rendezvous(launch: Launch) -> rendezvous.RendezvousHandler:
    """Go where the machines of a run meet; one alone meets on loopback, at any port.

    Raises:
        ConfigError: the port on this machine is another program's, or --local-addr is not this machine's.
        UnreachableError: nobody answers there.
        RendezvousError: likewise.
    """
    if launch.local_address:
        _require_own(launch.local_address)
    if launch.max_machines == 1:
        return _OneMachine(launch)
    return _open_static(launch) if launch.backend == "static" else _open_c10d(launch)


def _require_own(address: str) -> None:
    """Refuse an address by which no other machine could reach this one."""
    if not is_here(address):
        found = resolve(address) or "does not resolve"
        means = "" if found == address else f" ({found})"
        names = ", ".join(str(interface) for interface in list_interfaces())
        raise ConfigError(f"--local-addr {address}{means} is no address of this machine, which has {names}")


def _open_static(launch: Launch) -> rendezvous.RendezvousHandler:
    rank, number = int(launch.settings["rank"]), launch.max_machines
    seconds = float(launch.settings["timeout"])
    if rank == 0:
        store, _ = serve(launch.host, launch.port, seconds=seconds, patience=_PORT_SECONDS)
    else:
        store = connect(launch.host, launch.port, seconds=seconds)
    store.set(f"{launch.run_id}/machine/{rank}", "")
    deadline = time.monotonic() + seconds
    missing = list(range(number))
    while missing := [other for other in missing if not store.check([f"{launch.run_id}/machine/{other}"])]:
        if time.monotonic() > deadline:
            names = ", ".join(map(str, missing))
            raise UnreachableError(f"machine{'s' * (len(missing) > 1)} {names} did not come in {seconds:g} s")
        time.sleep(0.1)
    return _KnownMachines(launch, store, rank)


def _open_c10d(launch: Launch) -> rendezvous.RendezvousHandler:
    parameters = rendezvous.RendezvousParameters(
        backend=launch.backend,
        endpoint=launch.endpoint,
        run_id=launch.run_id,
        min_nodes=launch.min_machines,
        max_nodes=launch.max_machines,
        # Machines that meet on loopback are this one, several times.
        local_addr=launch.local_address or (LOOPBACK if is_loopback(launch.host) else None),
        **launch.settings,
    )
    serves = parameters.get_as_bool("is_host", is_here(launch.host))
    store = (
        _serve_or_join(launch) if serves else connect(launch.host, launch.port, seconds=launch.read_seconds)
    )
    return create_handler(store, C10dRendezvousBackend(store, launch.run_id), parameters)


def _serve_or_join(launch: Launch) -> Store:
    """Serve the launchers' store, or join that of another launcher of this run on this machine."""
    deadline = time.monotonic() + _PORT_SECONDS
    while True:
        try:
            return serve(launch.host, launch.port, seconds=launch.read_seconds)[0]
        except PortTakenError as taken:
            if _is_served_by_own_run(launch):
                return connect(launch.host, launch.port, seconds=launch.read_seconds)
            if time.monotonic() > deadline:
                raise ConfigError(f"--rdzv-endpoint {launch.endpoint}: {taken}") from None


def _is_served_by_own_run(launch: Launch) -> bool:
    """Whether what listens at the endpoint is the store of a launcher of this run.

    Asked by a process that can be killed: torch waits without end for the word of a program that is no store.
    """
    child = os.fork()
    if child == 0:
        try:
            store = connect(launch.host, launch.port, seconds=_KEY_SECONDS)
            store.wait([f"torch.rendezvous.{launch.run_id}"], timedelta(seconds=_KEY_SECONDS))
            os._exit(0)
        finally:
            os._exit(1)
    deadline = time.monotonic() + _ASK_SECONDS
    try:
        while time.monotonic() < deadline:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                child = 0
                return status == 0
            time.sleep(0.1)
        return False
    finally:
        if child:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
