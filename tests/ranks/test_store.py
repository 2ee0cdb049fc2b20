"""Stores: where they listen, and what becomes of those who find something else in their place."""

import contextlib
import os
import socket
import threading
import time
from pathlib import Path

import pytest

from lgd.config.values import ConfigError
from lgd.ranks import store
from lgd.ranks.rendezvous import Launch, open_rendezvous
from lgd.ranks.store import (
    LOOPBACK,
    PortTakenError,
    UnreachableError,
    announce_port,
    ask_port,
    connect,
    find_free_port,
    is_here,
    is_loopback,
    open_store,
    serve,
)

HOST = socket.gethostname()
OTHER_MACHINE = "192.0.2.1"
"""An address that nobody has (RFC 5737)."""


def is_heard_outside(port):
    """Whether more than loopback is listened on at the port."""
    with contextlib.suppress(OSError), socket.create_server(("127.0.0.2", port)):
        return False
    return True


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_loopback_alone(host):
    served, port = serve(host, 0, seconds=5)
    assert not is_heard_outside(port)
    served.set("key", "value")
    assert connect(host, port, seconds=5).get("key") == b"value"


def test_all_interfaces_for_other_machines():
    served, port = serve("node1", 0, seconds=5)
    assert is_heard_outside(port)
    served.set("key", "value")
    assert connect(LOOPBACK, port, seconds=5).get("key") == b"value"


def test_names_of_this_machine():
    assert [is_loopback(host) for host in ("localhost", "127.0.0.9", "::1")] == [True] * 3
    assert [is_loopback(host) for host in ("", "node1", "10.0.0.1")] == [False] * 3
    assert [is_here(host) for host in ("localhost", "127.0.0.1")] == [True] * 2
    assert [is_here(host) for host in (OTHER_MACHINE, "no.such.host.invalid")] == [False] * 2


def test_a_taken_port_is_waited_for_a_while():
    with socket.create_server((LOOPBACK, 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(
            PortTakenError, match=f"^port {port} on {HOST} is in use by another program; take"
        ):
            serve(LOOPBACK, port, seconds=5)
        threading.Timer(0.5, other.close).start()
        assert serve(LOOPBACK, port, seconds=5, patience=30)[1] == port


def test_nobody_listens():
    with pytest.raises(UnreachableError, match=r"^Connection refused, for 0.2 s$"):
        connect(LOOPBACK, find_free_port(), seconds=0.2)


def test_what_listens_is_no_store(monkeypatch):
    monkeypatch.setattr(store, "_ANSWER_SECONDS", 0.3)
    other = socket.create_server((LOOPBACK, 0))  # stays open: torch waits for its word to this process's end
    with pytest.raises(UnreachableError, match=r"^what listens there does not answer as a run does$"):
        connect(LOOPBACK, other.getsockname()[1], seconds=5)
    other.detach()


def test_free_ports_are_not_those_that_the_kernel_hands_out():
    first, _ = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    assert all(10_000 <= find_free_port() < min(first, 20_000) for _ in range(20))


def test_the_port_is_told_on_the_machine():
    asked = []
    thread = threading.Thread(target=lambda: asked.append(ask_port("a test", 30)))
    thread.start()
    announce_port("a test", 4711, 2, patience=0)
    with pytest.raises(PortTakenError, match="meets as 'a test'"):
        announce_port("a test", 1, 1, patience=0)
    thread.join()
    assert [*asked, ask_port("a test", 30)] == [4711, 4711]
    with pytest.raises(UnreachableError, match=r"no process of this machine meets as 'a test'"):
        ask_port("a test", 0)
    announce_port("a test", 1, 0, patience=30)  # the name is free again


def test_another_users_word_is_not_taken(monkeypatch):
    with socket.socket(socket.AF_UNIX) as liar, socket.socket(socket.AF_UNIX) as own:
        liar.bind(store._name_of("a lie"))
        liar.listen()
        own.connect(store._name_of("a lie"))
        assert store._is_own(own)
        user = os.getuid()
        monkeypatch.setattr(store.os, "getuid", lambda: user + 1)
        assert not store._is_own(own)


def test_ranks_of_one_machine_meet_at_any_port(monkeypatch):
    variables = {
        "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "node1", "MASTER_PORT": "0",
        store.MEETING: "one machine",
    }  # fmt: skip
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    served = open_store(0, 2, 30)
    served.set("key", "value")
    assert open_store(1, 2, 30).get("key") == b"value"


@pytest.mark.parametrize("port", ["0", "-1", "65536"])
def test_no_port(monkeypatch, port):
    monkeypatch.setenv("MASTER_ADDR", "node1")
    monkeypatch.setenv("MASTER_PORT", port)
    with pytest.raises(ConfigError, match=f"^MASTER_PORT is {port}, which is no port"):
        open_store(0, 2, 1)


def test_one_machine_needs_no_endpoint():
    """The launcher listens nowhere, and its workers have another port at each start."""
    with socket.create_server((LOOPBACK, 0)) as other:
        taken = f"localhost:{other.getsockname()[1]}"
        handler = open_rendezvous(Launch(command=(), num_workers=1, endpoint=taken))
        ports = set()
        for _ in range(5):
            meeting = handler.next_rendezvous()
            assert (meeting.rank, meeting.world_size) == (0, 1)
            assert meeting.bootstrap_store_info.master_addr == LOOPBACK
            ports.add(meeting.bootstrap_store_info.master_port)
        assert len(ports) > 1
        assert not handler.use_agent_store


@pytest.mark.parametrize(
    ("address", "means"), [(OTHER_MACHINE, ""), ("no.such.host.invalid", " (does not resolve)")]
)
def test_an_address_of_another_machine(address, means):
    with pytest.raises(ConfigError) as error:
        open_rendezvous(Launch(command=(), num_workers=1, local_address=address))
    expected = f"--local-addr {address}{means} is no address of this machine, which has "
    assert str(error.value).startswith(expected)
    assert "lo 127.0.0.1/8" in str(error.value)


def test_machines_that_do_not_come_are_counted():
    settings = {"rank": 0, "timeout": 0.2}
    launch = Launch(
        (), 1, 3, 3, backend="static", endpoint=f"{LOOPBACK}:{find_free_port()}", settings=settings
    )
    began = time.monotonic()
    with pytest.raises(UnreachableError, match=r"^machines 1, 2 did not come in 0.2 s$"):
        open_rendezvous(launch)
    assert time.monotonic() - began < 30
