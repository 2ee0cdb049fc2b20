"""Whether the ranks can reach one another over the interfaces that their backends will take."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from torch.distributed.distributed_c10d import Store

from lgd.config.values import ConfigError
from lgd.ranks.interfaces import address_facing, choose_interface, list_interfaces, resolve

_CALL_SECONDS = 10.0
"""For a connection between two machines that have just met; a lost packet is sent again by then."""

_READ_SECONDS = 10.0


def keep_to_loopback() -> None:
    """Let the backends listen on loopback alone, which does for one machine, unless the user chose."""
    for interface in list_interfaces():
        if interface.is_loopback:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface.name)
            os.environ.setdefault("NCCL_SOCKET_IFNAME", interface.name)
            return


@dataclass(frozen=True)
class _Way:
    """How this machine is reached by one backend; empty where that is not known."""

    problem: str = ""
    address: str = ""
    port: int = 0
    name: str = ""
    way_out: str = ""


def require_interfaces(store: Store, rank: int, hosts: Sequence[str]) -> None:
    """Make sure that the interfaces are there, and that each machine's are reached from another.

    Every rank calls it. Without, the ranks would wait in vain for one another, and not say for which.

    Args:
        store: that these ranks alone use.
        rank: this one.
        hosts: of all ranks.

    Raises:
        ConfigError: on every rank: what is wrong anywhere, and the interfaces that are there.
    """
    firsts = [hosts.index(host) for host in dict.fromkeys(hosts)]
    with contextlib.ExitStack() as stack:
        ways = [_open_way(backend, len(firsts), stack) for backend in ("gloo", "nccl")]
        problems = [way.problem for way in ways if way.problem]
        if rank in firsts and len(firsts) > 1:
            store.set(f"ways/{rank}", json.dumps([asdict(way) for way in ways]))
            target = firsts[(firsts.index(rank) + 1) % len(firsts)]
            theirs = [_Way(**way) for way in json.loads(store.get(f"ways/{target}"))]
            problems += [problem for way in theirs if (problem := _call(way, hosts[target]))]
        store.set(f"problems/{rank}", json.dumps(problems))
        if rank == 0:
            everyones = [json.loads(store.get(f"problems/{other}")) for other in range(len(hosts))]
            found = dict.fromkeys(problem for problems in everyones for problem in problems)
            store.set("problems", json.dumps(list(found)))
        message = "; ".join(json.loads(store.get("problems")))
    if message:
        _leave_together(store, rank, len(hosts))
        raise ConfigError(message)


def _leave_together(store: Store, rank: int, num_ranks: int) -> None:
    """Let rank 0, which takes the store along, wait a while for the others to have read it."""
    store.set(f"read/{rank}", "")
    deadline = time.monotonic() + _READ_SECONDS
    while rank == 0 and time.monotonic() < deadline:
        if store.check([f"read/{other}" for other in range(num_ranks)]):
            return
        time.sleep(0.1)


def _open_way(backend: str, num_hosts: int, stack: contextlib.ExitStack) -> _Way:
    """Listen where the backend will, until `stack` closes."""
    variable = f"{backend.upper()}_SOCKET_IFNAME"
    requested, interfaces = os.environ.get(variable, ""), list_interfaces()
    if backend == "nccl" and not requested:
        return _Way()  # it looks for itself
    host_address = resolve(socket.gethostname())
    choice = choose_interface(
        interfaces,
        backend=backend,
        requested=requested,
        host_address=host_address,
        facing=address_facing(os.environ.get("MASTER_ADDR", "")),
        num_hosts=num_hosts,
    )
    if requested and choice.problem:
        return _Way(f"on {socket.gethostname()} {choice.problem}; {choice.way_out}")
    # A host's name that leads to loopback is a problem only if the others do not get there.
    address = choice.interface.address if choice.interface else host_address
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        listener = stack.enter_context(socket.create_server((address, 0), family=family))
    except OSError:
        return _Way()  # of another machine, or none: the backend will say what it makes of it
    there = ", ".join(str(interface) for interface in interfaces)
    name = f"{choice.interface.name if choice.interface else address} ({choice.source})"
    way_out = choice.way_out or f"set {variable} to the interface that faces the other hosts"
    return _Way("", address, listener.getsockname()[1], name, f"{way_out}; it has {there}")


def _call(way: _Way, host: str) -> str:
    """Try to reach another machine; what is wrong, "" if nothing."""
    if not way.address:
        return ""
    try:
        socket.create_connection((way.address, way.port), _CALL_SECONDS).close()
    except OSError as error:
        return (
            f"{socket.gethostname()} cannot reach {host} at {way.address}, its {way.name}: "
            f"{error.strerror or 'no answer'}; on {host} {way.way_out}"
        )
    return ""
