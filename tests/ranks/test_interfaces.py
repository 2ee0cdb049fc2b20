"""Which interface a backend will use."""

import pytest

from lgd.ranks.interfaces import (
    Choice,
    Interface,
    address_facing,
    choose_interface,
    list_interfaces,
    resolve,
)

LO = Interface("lo", "127.0.0.1", 8, True, None)
ETH0 = Interface("eth0", "10.0.0.7", 24, True, 1000)
ETH1 = Interface("eth1", "10.1.0.7", 24, False, None)
IB0 = Interface("ib0", "", 0, True, None)
ALL = (LO, ETH0, ETH1, IB0)


def choose(requested="", backend="gloo", host_address="10.0.0.7", facing="10.0.0.7", num_hosts=2):
    return choose_interface(
        ALL, backend=backend, requested=requested, host_address=host_address, facing=facing,
        num_hosts=num_hosts,
    )  # fmt: skip


def test_gloo_takes_what_the_host_name_resolves_to():
    assert choose() == Choice(ETH0, "host name")


@pytest.mark.parametrize("address", ["127.0.1.1", "127.0.0.1"])
def test_a_name_that_resolves_to_loopback_reaches_no_other_host(address):
    choice = choose(host_address=address)
    assert choice.problem == f"the host's own name resolves to {address}, where no other host can reach gloo"
    assert choice.way_out == "set GLOO_SOCKET_IFNAME to the interface that faces the other hosts (eth0)"
    assert choose(host_address="127.0.0.1", num_hosts=1) == Choice(LO, "host name")


def test_a_name_that_does_not_resolve():
    assert choose(host_address="", facing="").problem.startswith("the host's own name does not resolve")


@pytest.mark.parametrize(
    ("requested", "backend", "interface"),
    [
        ("eth0", "gloo", ETH0), ("lo,eth0", "gloo", LO), ("eth", "nccl", ETH0), ("=eth0", "nccl", ETH0),
        ("^lo,ib", "nccl", ETH0), ("^=lo", "nccl", ETH0), ("eth1,eth0", "gloo", ETH0),
    ],
)  # fmt: skip
def test_the_variable_wins(requested, backend, interface):
    assert choose(requested, backend) == Choice(interface, f"{backend.upper()}_SOCKET_IFNAME")


@pytest.mark.parametrize(
    ("requested", "problem"),
    [
        ("eth", "GLOO_SOCKET_IFNAME is eth, which is not there"),
        ("eth0,ib1", "GLOO_SOCKET_IFNAME is eth0,ib1, which is not there"),
        ("eth1", "GLOO_SOCKET_IFNAME is eth1, and eth1 is down"),
        ("ib0", "GLOO_SOCKET_IFNAME is ib0, and ib0 has no address"),
    ],
)
def test_what_the_variable_names_cannot_be_used(requested, problem):
    choice = choose(requested)
    assert choice.problem == problem
    assert "eth0 10.0.0.7/24" in choice.way_out


def test_nccl_is_taken_to_face_rank_0():
    assert choose(backend="nccl", host_address="127.0.1.1") == Choice(ETH0, "route")


def test_this_machine():
    found = {interface.name: interface for interface in list_interfaces()}
    assert found["lo"].is_loopback
    assert found["lo"].prefix == 8
    assert found["lo"].is_up
    assert resolve("127.0.0.1") == "127.0.0.1"
    assert resolve("no.such.host.invalid") == address_facing("no.such.host.invalid") == ""
    assert address_facing("127.0.0.1") == "127.0.0.1"
