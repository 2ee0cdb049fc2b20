"""The key-value stores at which processes meet: who serves one, and where it listens.

Torch's stores ask nobody for a secret, and by themselves listen on every interface of the machine. Here one
listens on loopback alone wherever all that meet are on one machine.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import random
import socket
import struct
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store

from lgd.config.values import ConfigError

T = TypeVar("T")

LOOPBACK = "127.0.0.1"

MEETING = "LGD_MEETING"
"""Variable that names the ranks' meeting where MASTER_PORT is 0: rank 0 takes any port and tells the others
of its machine by a socket of this name."""

_ANSWER_SECONDS = 20.0
"""For the first answer of a store that a connection has been made to."""

_PATIENCE_SECONDS = 10.0
"""For a port that an earlier start of the same run may still hold."""

_QUIET_PORTS = (10_000, 20_000)
"""Below those that Linux gives to connections and to who asks for any port."""

_BACKLOG = 2048
_PORT = struct.Struct("!H")
_PEER = struct.Struct("3i")
"""Linux's `struct ucred`: process, user and group at the other end of a local socket."""


class RanksError(RuntimeError):
    """Ranks lost one another: some died, hang, or cannot be reached."""


class PortTakenError(ConfigError):
    """A port at which this machine is to listen is another program's."""


class UnreachableError(RuntimeError):
    """Nothing that is a store answers at an address."""


def in_time(action: Callable[[], T], seconds: float) -> T:
    """Return what `action` does, which may never end.

    Raises:
        TimeoutError: it has not ended after `seconds`; it goes on beside.
        Exception: whatever it raises.
    """
    answers: list[T] = []
    errors: list[Exception] = []

    def work() -> None:
        try:
            answers.append(action())
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    for error in errors:
        raise error
    if not answers:
        raise TimeoutError
    return answers[0]


def is_loopback(host: str) -> bool:
    """Whether a host's name or address can mean nothing but this machine, wherever it is read."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _loopback_of(host: str) -> str:
    """The loopback address that `host` is; "" where it is none."""
    return "" if not is_loopback(host) else LOOPBACK if host == "localhost" else host


def is_here(host: str) -> bool:
    """Whether a host's name or address is this machine's (or network namespace's)."""
    try:
        found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return any(_can_bind(family, address) for family, _, _, _, address in found)


def _can_bind(family: int, address: tuple[str | int, ...] | tuple[int, bytes]) -> bool:
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind(address)
    except OSError:
        return False
    return True


def serve(host: str, port: int, *, seconds: float, patience: float = 0.0) -> tuple[Store, int]:
    """Serve a store from this process, on loopback alone if `host` is loopback, else on every interface.

    Args:
        host: name or address of this machine by which the clients know it.
        port: where to listen; 0 takes any that is free.
        seconds: how long this process waits for a key.
        patience: seconds to wait for a port that is in use: a run that has just ended may still hold it.

    Returns:
        The store, and its port.

    Raises:
        PortTakenError: another program has the port.
    """
    listener = _listen(_loopback_of(host), port, patience)
    number = int(listener.getsockname()[1])
    own = _loopback_of(host) or LOOPBACK
    return _open(own, number, seconds, listener.detach()), number


def connect(host: str, port: int, *, seconds: float) -> Store:
    """Reach a store that another process serves.

    Args:
        host: where it is.
        port: likewise.
        seconds: how long to wait for somebody to listen there; and later for a key.

    Raises:
        UnreachableError: nobody listens there, or something that is no store.
    """
    _wait_until_open(host, port, seconds)
    return _open(host, port, seconds, None)


def _wait_until_open(host: str, port: int, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((host, port), timeout=max(1.0, deadline - time.monotonic())).close()
            return
        except OSError as error:
            reason = error.strerror or str(error)
        if time.monotonic() > deadline:
            raise UnreachableError(f"{reason}, for {seconds:g} s")
        time.sleep(0.1)


def _open(host: str, port: int, seconds: float, listener: int | None) -> Store:
    def create() -> Store:
        store: Store = dist.TCPStore(  # type: ignore[attr-defined]
            host,
            port,
            is_master=listener is not None,
            timeout=timedelta(seconds=seconds),
            wait_for_workers=False,
            master_listen_fd=listener,
        )
        return store

    try:
        # Torch waits without end for the first word of a program that listens there and is no store.
        return in_time(create, _ANSWER_SECONDS)
    except TimeoutError:
        raise UnreachableError("what listens there does not answer as a run does") from None
    except (RuntimeError, ValueError) as error:
        raise UnreachableError(str(error).strip().split("\n")[0]) from error


def _listen(address: str, port: int, patience: float) -> socket.socket:
    deadline = time.monotonic() + patience
    while True:
        try:
            return _bind(address, port)
        except OSError as error:
            if error.errno == errno.EADDRINUSE and time.monotonic() < deadline:
                time.sleep(0.2)
                continue
            taken = error.errno == errno.EADDRINUSE
            reason = "in use by another program" if taken else f"not to be had: {error.strerror}"
            raise PortTakenError(
                f"port {port} on {socket.gethostname()} is {reason}; take another "
                f"(who has it: ss -ltnp 'sport = :{port}')"
            ) from None


def _bind(address: str, port: int) -> socket.socket:
    """Listen at an address; "" for all of this machine's."""
    both = not address and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both or ":" in address else socket.AF_INET
    return socket.create_server((address, port), family=family, backlog=_BACKLOG, dualstack_ipv6=both)


def find_free_port() -> int:
    """A port of loopback that is free now, and that the kernel will hand to nobody in the next seconds."""
    while True:
        port = random.randrange(*_QUIET_PORTS)
        with contextlib.suppress(OSError), _bind(LOOPBACK, port):
            return port


def announce_port(meeting: str, port: int, num_others: int, *, patience: float) -> None:
    """Tell the other processes of this machine and user the port, each once; returns at once.

    Args:
        meeting: what they all call it.
        port: to tell.
        num_others: how many will ask.
        patience: seconds to wait for the name, if an earlier meeting of that name has not ended yet.

    Raises:
        PortTakenError: another program has the name.
    """
    deadline = time.monotonic() + patience
    listener = socket.socket(socket.AF_UNIX)
    while True:
        try:
            listener.bind(_name_of(meeting))
            break
        except OSError:
            if time.monotonic() > deadline:
                listener.close()
                raise PortTakenError(
                    f"another run on {socket.gethostname()} meets as {meeting!r} ({MEETING})"
                ) from None
            time.sleep(0.2)
    listener.listen(_BACKLOG)

    def answer() -> None:
        told = 0
        with listener:
            while told < num_others:
                connection, _ = listener.accept()
                with connection, contextlib.suppress(OSError):
                    if _is_own(connection):
                        connection.sendall(_PORT.pack(port))
                        told += 1

    threading.Thread(target=answer, daemon=True).start()


def ask_port(meeting: str, seconds: float) -> int:
    """The port that another process of this machine and user announces, waiting up to `seconds` for it.

    Raises:
        UnreachableError: none did.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(5.0)
                connection.connect(_name_of(meeting))
                if _is_own(connection):
                    return int(_PORT.unpack(connection.recv(_PORT.size, socket.MSG_WAITALL))[0])
        except (OSError, struct.error):
            pass
        if time.monotonic() > deadline:
            raise UnreachableError(f"no process of this machine meets as {meeting!r} ({MEETING})")
        time.sleep(0.1)


def _is_own(connection: socket.socket) -> bool:
    """Whether the other end of a local socket is this user's."""
    peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
    return bool(_PEER.unpack(peer)[1] == os.getuid())


def _name_of(meeting: str) -> str:
    """An address of Linux's abstract namespace: no file, gone with its process."""
    return f"\0lgd-{os.getuid()}-{meeting}"[:100]


def open_store(rank: int, world_size: int, timeout_seconds: float) -> Store:
    """Reach the ranks' key-value store at MASTER_ADDR:MASTER_PORT, which rank 0 serves, or the launcher.

    Where all ranks are on one machine it listens on loopback alone, and its port may be any (0).

    Raises:
        ConfigError: the environment does not say where; or another program has the port.
        RanksError: it cannot be reached within the time-out.
    """
    address, port = _address(world_size)
    if rank == 0 and not launcher_serves():
        return PrefixStore("lgd", _serve(address, port, world_size, timeout_seconds))
    try:
        if port == 0:
            port = ask_port(os.environ[MEETING], timeout_seconds)
        return PrefixStore("lgd", connect(address, port, seconds=timeout_seconds))
    except UnreachableError as error:
        raise RanksError(
            f"rank {rank} on {socket.gethostname()} cannot reach rank 0 at {address}:{port} "
            f"(MASTER_ADDR, MASTER_PORT): {error}"
        ) from error


def _serve(address: str, port: int, world_size: int, timeout_seconds: float) -> Store:
    where = f"rank 0 on {socket.gethostname()} cannot serve the ranks' store (MASTER_PORT)"
    try:
        store, found = serve(address, port, seconds=timeout_seconds, patience=_PATIENCE_SECONDS)
        if port == 0:
            announce_port(os.environ[MEETING], found, world_size - 1, patience=_PATIENCE_SECONDS)
    except PortTakenError as error:
        if "TORCHELASTIC_RUN_ID" in os.environ:  # the launcher's choice: it makes another at the next start
            raise RanksError(f"{where}: {error}") from None
        raise ConfigError(f"{where}: {error}") from None
    except UnreachableError as error:
        raise RanksError(f"{where}: {error}") from error
    return store


def _address(world_size: int) -> tuple[str, int]:
    """Where the store is; on loopback where this process knows all ranks to be on its machine."""
    try:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f"WORLD_SIZE is {world_size}, but MASTER_ADDR and MASTER_PORT do not say where rank 0 is; start "
            "with --num-gpus, torchrun or lgd.launch, which set them, or unset WORLD_SIZE"
        ) from error
    if not 0 <= port < 2**16 or (port == 0 and MEETING not in os.environ):
        raise ConfigError(f"MASTER_PORT is {port}, which is no port at which the ranks could meet")
    return (LOOPBACK if is_one_machine() and not launcher_serves() else address), port


def is_one_machine() -> bool:
    """Whether all ranks are known to be on this machine: from the launcher, or by rank 0's address."""
    ranks, ranks_here = os.environ.get("WORLD_SIZE", "1"), os.environ.get("LOCAL_WORLD_SIZE")
    return ranks == ranks_here or is_loopback(os.environ.get("MASTER_ADDR", ""))


def launcher_serves() -> bool:
    """Whether the launcher that started this rank keeps the ranks' store."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
