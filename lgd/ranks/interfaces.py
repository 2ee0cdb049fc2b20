"""Network interfaces of this machine (Linux), and which of them the ranks will talk over."""

from __future__ import annotations

import fcntl
import ipaddress
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_GET_FLAGS, _GET_ADDRESS, _GET_NETMASK = 0x8913, 0x8915, 0x891B
"""Requests of Linux's netdevice(7)."""

_IS_UP = 0x1
_GLOBAL_SCOPE = "00"


@dataclass(frozen=True)
class Interface:
    """A network interface with its first address.

    Attributes:
        name: such as "eth0".
        address: IPv4, or IPv6 where it has no IPv4; "" without any.
        prefix: bits of the address that name the network.
        is_up: whether it is switched on.
        speed: Mbit/s; None where the driver does not say.
    """

    name: str
    address: str
    prefix: int
    is_up: bool
    speed: int | None

    @property
    def is_loopback(self) -> bool:
        """Whether it leads nowhere but to this machine."""
        return bool(self.address) and ipaddress.ip_address(self.address).is_loopback

    def __str__(self) -> str:
        """Name, address and network: "eth0 10.0.0.7/24"."""
        return f"{self.name} {self.address}/{self.prefix}" if self.address else f"{self.name} (no address)"


@dataclass(frozen=True)
class Choice:
    """The interface that the ranks' traffic goes over.

    Attributes:
        interface: it; None where none fits.
        source: what chose it: an environment variable, "host name" or "route".
        problem: why it cannot work; "" if it can.
        way_out: what to do about the problem.
    """

    interface: Interface | None
    source: str
    problem: str = ""
    way_out: str = ""


def list_interfaces() -> list[Interface]:
    """List the interfaces of this machine (or network namespace), in the kernel's order."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        return [_describe(probe, name) for _, name in socket.if_nameindex()]


def choose_interface(
    interfaces: Sequence[Interface],
    *,
    backend: str,
    requested: str,
    host_address: str,
    facing: str,
    num_hosts: int,
) -> Choice:
    """Find the interface that torch's backend will use.

    Args:
        interfaces: of this machine.
        backend: "gloo" or "nccl".
        requested: value of GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME, "" where it is not set.
        host_address: what this machine's own name resolves to, "" where it does not.
        facing: this machine's address on the way to rank 0, "" where there is none.
        num_hosts: machines that take part.
    """
    variable = f"{backend.upper()}_SOCKET_IFNAME"
    if requested:
        return _requested(interfaces, backend, requested, variable)
    by_address = {interface.address: interface for interface in interfaces if interface.address}
    way_out = f"set {variable} to the interface that faces the other hosts" + (
        f" ({by_address[facing].name})" if facing in by_address and not by_address[facing].is_loopback else ""
    )
    if backend == "nccl":  # NCCL looks for itself, and takes no loopback where there is anything else
        return Choice(by_address.get(facing), "route")
    if num_hosts == 1:
        return Choice(by_address.get(host_address) or by_address.get(facing), "host name")
    if not host_address:
        return Choice(None, "host name", "the host's own name does not resolve: gloo takes loopback", way_out)
    chosen = by_address.get(host_address)
    if chosen is None or chosen.is_loopback:
        problem = f"the host's own name resolves to {host_address}, where no other host can reach gloo"
        return Choice(chosen, "host name", problem, way_out)
    return Choice(chosen, "host name")


def _requested(interfaces: Sequence[Interface], backend: str, requested: str, variable: str) -> Choice:
    matches = [interface for interface in interfaces if _matches(interface.name, requested, backend)]
    names = ", ".join(str(interface) for interface in interfaces)
    absent = set(requested.split(",")) - {interface.name for interface in interfaces}
    if not matches or (backend == "gloo" and absent):  # gloo wants all that it is told, NCCL one of them
        return Choice(
            None, variable, f"{variable} is {requested}, which is not there", f"this host has {names}"
        )
    usable = [interface for interface in matches if interface.address and interface.is_up]
    if not usable:
        state = "is down" if not matches[0].is_up else "has no address"
        return Choice(
            matches[0],
            variable,
            f"{variable} is {requested}, and {matches[0].name} {state}",
            f"this host has {names}",
        )
    return Choice(usable[0], variable)


def _matches(name: str, requested: str, backend: str) -> bool:
    """Whether the variable's value means this interface: gloo takes names, NCCL beginnings, "=" and "^"."""
    excludes, wanted = requested.startswith("^"), requested.lstrip("^=").split(",")
    if backend == "gloo" or requested.lstrip("^").startswith("="):
        found = name in wanted
    else:
        found = any(name.startswith(beginning) for beginning in wanted)
    return found != (excludes and backend == "nccl")


def resolve(host: str) -> str:
    """Return the first address of a host name, "" where it does not resolve."""
    try:
        return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError:
        return ""


def address_facing(host: str) -> str:
    """Return this machine's address on the way to `host`, "" where there is no way; sends nothing."""
    try:
        family, kind, _, _, target = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(target)
            return str(probe.getsockname()[0])
    except OSError:
        return ""


def _describe(probe: socket.socket, name: str) -> Interface:
    flags = _ask(probe, name, _GET_FLAGS)
    address, mask = _ask(probe, name, _GET_ADDRESS), _ask(probe, name, _GET_NETMASK)
    if address and mask:
        text, prefix = socket.inet_ntoa(address[4:8]), int.from_bytes(mask[4:8], "big").bit_count()
    else:
        text, prefix = _ipv6_address(name)
    is_up = bool(flags) and bool(struct.unpack_from("H", flags)[0] & _IS_UP)
    return Interface(name, text, prefix, is_up, _speed(name))


def _ask(probe: socket.socket, name: str, request: int) -> bytes:
    """The kernel's answer behind the name in `struct ifreq`; empty where it has none."""
    try:
        return fcntl.ioctl(probe.fileno(), request, struct.pack("256s", name.encode()[:15]))[16:]
    except OSError:
        return b""


def _ipv6_address(name: str) -> tuple[str, int]:
    try:
        lines = Path("/proc/net/if_inet6").read_text().splitlines()
    except OSError:
        return "", 0
    for digits, _, prefix, scope, _, interface in map(str.split, lines):
        if interface == name and (scope == _GLOBAL_SCOPE or name == "lo"):
            return str(ipaddress.IPv6Address(int(digits, 16))), int(prefix, 16)
    return "", 0


def _speed(name: str) -> int | None:
    try:
        speed = int(Path(f"/sys/class/net/{name}/speed").read_text())
    except (OSError, ValueError):
        return None
    return speed if speed > 0 else None
