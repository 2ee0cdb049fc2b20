"""What runs on one machine listen on: loopback, and nothing else."""

import ipaddress
import os
import socket
import sys
import time
from pathlib import Path

import pytest

from tests.training import command, descendants, small_settings, start_program

LISTENS = "0A"
"""The state in /proc/net/tcp."""


def sockets_of(process_id):
    """The sockets that a process has open, by their inodes."""
    found = set()
    for handle in Path(f"/proc/{process_id}/fd").iterdir():
        try:
            name = str(handle.readlink())
        except OSError:
            continue
        if name.startswith("socket:["):
            found.add(name.removeprefix("socket:[").removesuffix("]"))
    return found


def address_of(text):
    """An address as the kernel writes it: words of 32 bits, each in the machine's order of bytes."""
    words = [bytes.fromhex(text[place : place + 8]) for place in range(0, len(text), 8)]
    return ipaddress.ip_address(b"".join(word[::-1] for word in words))


def addresses_listened_on(process_ids):
    owned = set()
    for process_id in process_ids:
        try:
            owned |= sockets_of(process_id)
        except OSError:
            continue
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == LISTENS and words[9] in owned:
                yield address_of(words[1].split(":")[0])


def watch(arguments, *, itself=True):
    """Run a program to its end; its output, and all addresses that it and its children ever listened on."""
    process = start_program(arguments)
    seen, own = set(), [process.pid] if itself else []
    while process.poll() is None:
        seen |= set(addresses_listened_on([*own, *descendants(process.pid)]))
        time.sleep(0.1)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return output, seen


def test_a_socket_on_all_interfaces_is_seen():
    with socket.create_server(("", 0)), socket.create_server(("127.0.0.1", 0)):
        seen = set(addresses_listened_on([os.getpid()]))
    assert {ipaddress.ip_address("0.0.0.0"), ipaddress.ip_address("127.0.0.1")} <= seen


def launched(settings):
    own = ["-m", "lgd.launch", "--nproc-per-node", "2", "--"]
    return [sys.executable, *own, *command(settings)[3:]]


def launched_twice(settings):
    """Two launchers that meet on loopback, one in the background."""
    own = ["--nnodes", "2", "--rdzv-endpoint", "localhost:29437"]
    words = [sys.executable, "-m", "lgd.launch", *own, "--", *command(settings)[3:]]
    return ["sh", "-c", '"$@" & "$@"; wait', "sh", *words]


def spawned(settings):
    return command([*settings], "--num-gpus", "2")


def torchrun(settings):
    """Torchrun's own store is not ours."""
    program = Path(sys.executable).with_name("torchrun")
    return [str(program), "--standalone", "--nproc-per-node=2", *command(settings)[1:]]


def preflight(settings):
    own = ["-m", "lgd.launch", "--nproc-per-node", "2", "-m", "lgd.preflight"]
    return [sys.executable, *own, "--", "--slow-factor", "1000", "--largest", "1"]


@pytest.mark.slow
@pytest.mark.parametrize("start", [spawned, launched, launched_twice, torchrun, preflight])
def test_only_loopback(small_data, tmp_path, start):
    arguments = start(small_settings(small_data, tmp_path / "run", SOLVER__MAX_ITER=8))
    output, seen = watch(arguments, itself=start is not torchrun)
    assert seen, output
    assert all(address.is_loopback for address in seen), seen
