"""What is a finding, whom it names, and what is none."""

import pytest

from lgd.preflight.calls import Call, targets_of
from lgd.preflight.card import format_ranks, nodes_of
from lgd.preflight.collectives import AllReduce, Link, Measurement, round_robin
from lgd.preflight.findings import (
    Limits,
    format_bytes,
    missing_ranks,
    odd_ones,
    other_networks,
    own_problems,
    skewed_clocks,
    storage_problems,
    unreachable,
)
from lgd.preflight.place import Place
from lgd.preflight.slowness import broken_measurements, slow_links, slow_nodes
from lgd.preflight.storage import Dataset, Storage
from tests.preflight.cards import GIB, make_card, make_cards


def whats(findings):
    return [finding.what for finding in findings]


def test_nodes_and_ranks_in_words():
    assert nodes_of(make_cards(4)) == {"node0": [0, 1], "node1": [2, 3]}
    same_name = {0: make_card(0, "vm"), 2: make_card(2, "vm")}
    assert nodes_of(same_name) == {"vm#0": [0], "vm#1": [2]}
    assert [format_ranks(ranks) for ranks in ([3], [0, 1], [8, 0, 2, 1])] == [
        "rank 3", "ranks 0-1", "ranks 0-2, 8",
    ]  # fmt: skip
    assert [format_bytes(n) for n in (0, 1023, 1536, 3 * GIB, 2**42)] == [
        "0 B", "1023 B", "1.5 KiB", "3.0 GiB", "4.0 TiB",
    ]  # fmt: skip


def test_missing_ranks_are_named_with_their_hosts_where_known():
    cards = make_cards(8)
    for rank in (1, 4, 5):
        del cards[rank]
    place = Place(0, 0, 8, 2, 0, "node0", 1, "torchrun")
    assert whats(missing_ranks(place, cards, 45)) == [
        "rank 1 of 8 did not come in 45 s (host node0)",
        "ranks 4-5 of 8 did not come in 45 s (node 2, of which nobody came)",
    ]
    unsaid = Place(0, 0, 8, 0, 0, "node0", 1, "SLURM")
    assert whats(missing_ranks(unsaid, cards, 45)) == ["ranks 1, 4-5 of 8 did not come in 45 s"]
    assert not whats(missing_ranks(place, make_cards(8), 45))


def test_the_same_problem_of_a_hosts_ranks_is_said_once():
    problem = {"problems": (("no device", "look"),)}
    assert whats(own_problems(make_cards(6, r2=problem, r3=problem, r5=problem))) == [
        "ranks 2-3 (node1): no device",
        "rank 5 (node2): no device",
    ]


def test_odd_versions_devices_drivers_and_settings():
    cards = make_cards(6, r4={"versions": {"torch": "2.14.1"}}, r1={"device_name": "NVIDIA A100"})
    assert whats(odd_ones(cards)) == [
        "rank 4 (node2): torch 2.14.1, most have 2.15.0",
        "rank 1 (node0): device NVIDIA A100, most have CPU",
    ]
    drivers = {f"r{rank}": {"driver": "550.54"} for rank in range(3)}
    settings = {f"r{rank}": {**drivers[f"r{rank}"], "config_hash": "a" * 64} for rank in range(3)}
    assert whats(odd_ones(make_cards(4, **settings))) == [
        "rank 3 (node1): driver none, most have 550.54",
        "rank 3 (node1): settings unread, most have hash aaaaaaaaaaaa",
    ]
    assert not whats(odd_ones(make_cards(4)))


def test_a_rank_on_another_interface_is_named_and_explains_who_cannot_be_reached():
    other = {"interface": "eth1", "address": "10.9.0.2", "source": "GLOO_SOCKET_IFNAME"}
    cards = make_cards(4, r3=other)
    found = list(other_networks(cards))
    assert whats(found) == [
        "rank 3 (node1): on another interface, eth1 10.9.0.2 (by GLOO_SOCKET_IFNAME); "
        "the others talk over eth0 10.0.0.0/24"
    ]
    assert found[0].way_out.startswith(
        "set GLOO_SOCKET_IFNAME on node1 to its interface in 10.0.0.0/24; it has"
    )
    assert not whats(unreachable([Call(1, 3, error="no answer")], cards))


def test_of_two_networks_that_of_rank_0_is_right():
    cards = make_cards(4, **{f"r{rank}": {"interface": "eth1", "address": "10.9.0.2"} for rank in (2, 3)})
    assert "ranks 2-3 (node1): on another interface" in whats(other_networks(cards))[0]


def test_a_network_for_every_node_is_meant_so():
    routed = {f"r{rank}": {"address": f"10.0.{rank // 2}.1"} for rank in range(6)}
    assert not whats(other_networks(make_cards(6, **routed)))
    loopback = {f"r{rank}": {"address": "127.0.0.1", "prefix": 8} for rank in range(2)}
    assert not whats(other_networks(make_cards(2, **loopback)))


def test_unreachable_nodes():
    calls = [Call(0, 2, error="timed out"), Call(1, 3, error="timed out"), Call(2, 0, round_trip=1e-4)]
    assert whats(unreachable(calls, make_cards(4))) == [
        "node0 cannot reach node1: ranks 0-1 to ranks 2-3 at eth0 10.0.0.2, timed out"
    ]


def test_every_rank_calls_rank_0_its_neighbour_and_its_like():
    cards = make_cards(6)
    assert targets_of(0, cards) == [1, 2, 4]
    assert targets_of(3, cards) == [0, 1, 2, 5]
    assert targets_of(0, make_cards(1)) == []


def test_clocks():
    calls = [
        Call(2, 0, round_trip=0.001, skew=-3.0), Call(3, 0, round_trip=0.001, skew=-3.0),
        Call(4, 0, round_trip=0.001, skew=0.9), Call(5, 0, round_trip=6.0, skew=3.5),
        Call(4, 2, round_trip=0.001, skew=9.0),
    ]  # fmt: skip
    assert whats(skewed_clocks(calls, make_cards(6), Limits())) == [
        "clock of node1 is 3.0 s ahead of rank 0's"
    ]
    assert whats(skewed_clocks([Call(2, 0, 0.001, 2.5)], make_cards(6), Limits(max_skew=2.0))) == [
        "clock of node1 is 2.5 s behind rank 0's"
    ]


def storages(*datasets, **of_first):
    return [
        Storage(2 * i, {"train": dataset}, **(of_first if i == 0 else {}))
        for i, dataset in enumerate(datasets)
    ]


GOOD = Dataset(10, 20, "a" * 64, "b" * 64)


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        (Dataset(error="no such file"), "node1: cannot read data set train: no such file"),
        (
            Dataset(10, 20, "c" * 64, "d" * 64),
            "node1: annotations of data set train differ from those of most nodes (cccccccccccc, most have "
            "aaaaaaaaaaaa)",
        ),
        (
            Dataset(10, 20, "a" * 64, "d" * 64),
            "node1: image files of data set train differ from those of most nodes (dddddddddddd, most have "
            "bbbbbbbbbbbb)",
        ),
    ],
)
def test_a_node_without_the_data_or_with_other_data(odd, message):
    assert whats(storage_problems(storages(GOOD, odd, GOOD), make_cards(6), [0, 2, 4])) == [message]


def test_no_node_has_the_data():
    found = list(storage_problems(storages(*[Dataset(error="gone")] * 2), make_cards(4), [0, 2]))
    assert whats(found) == ["node0, node1: cannot read data set train: gone"]
    assert found[0].way_out == "mend DATASETS"


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"error": "bad model"}, "node0: bad model"),
        (
            {"shared_free": 64 * 2**20, "shared_needed": GIB},
            "node0: /dev/shm has 64.0 MiB free, the loaders may want 1.0 GiB",
        ),
        ({"output_error": "/out cannot be written to: full"}, "node0: /out cannot be written to: full"),
        (
            {"output": "/out", "output_free": GIB, "output_needed": 2 * GIB},
            "node0: /out has 1.0 GiB free, the checkpoints take 2.0 GiB",
        ),
    ],
)
def test_disks(found, message):
    assert whats(storage_problems(storages(GOOD, GOOD, **found), make_cards(4), [0, 2])) == [message]


def test_a_node_that_does_not_finish_looking():
    found = storage_problems(storages(GOOD), make_cards(4), [0, 2])
    assert whats(found) == ["rank 2 (node1): did not finish looking at its data in time"]
    unknown = storages(GOOD, shared_needed=GIB)
    assert not whats(storage_problems(unknown, make_cards(2), [0]))


def measured(bandwidths):
    """Measurements from {(source node, target node): bytes a second}."""
    result = {}
    for (source, target), bandwidth in bandwidths.items():
        links = result.setdefault(2 * source, Measurement()).links
        links.append(Link(2 * source, 2 * target, 1e-4, bandwidth))
    return result


def all_links(num_nodes, slow=lambda a, b: False):
    nodes = range(num_nodes)
    return {(a, b): 1e6 if slow(a, b) else 1e9 for a in nodes for b in nodes if a != b}


def test_links_that_are_well():
    assert not whats(slow_links(measured(all_links(4)), make_cards(8), Limits()))
    assert not whats(slow_links({0: Measurement()}, make_cards(2), Limits()))


def test_a_node_whose_every_link_is_slow_is_named_once():
    found = whats(slow_links(measured(all_links(4, lambda a, b: 2 in (a, b))), make_cards(8), Limits()))
    assert found == [
        "node2 is slow to and from every other node: 976.6 KiB/s at best; the others' median is 953.7 MiB/s"
    ]


def test_a_single_slow_link_is_named():
    links = all_links(3, lambda a, b: (a, b) == (2, 0))
    assert whats(slow_links(measured(links), make_cards(6), Limits())) == [
        "slow link from node2 to node0: 976.6 KiB/s; the others' median is 953.7 MiB/s"
    ]


def test_one_slow_direction_between_two_nodes():
    found = whats(slow_links(measured({(0, 1): 1e9, (1, 0): 1e6}), make_cards(4), Limits()))
    assert found == ["slow link from node1 to node0: 976.6 KiB/s; the others' median is 953.7 MiB/s"]
    assert not whats(
        slow_links(measured({(0, 1): 1e9, (1, 0): 1e6}), make_cards(4), Limits(slow_factor=2000))
    )


def test_both_directions_slow_needs_a_measure_from_outside():
    links = measured({(0, 1): 1e6, (1, 0): 1e6})
    cards = make_cards(4)
    assert not whats(slow_links(links, cards, Limits()))
    assert len(whats(slow_links(links, cards, Limits(min_bandwidth=2e6)))) == 2
    promised = {rank: make_card(rank, speed=10_000) for rank in range(4)}
    assert whats(slow_links(links, promised, Limits()))[0] == (
        "slow link from node0 to node1: 976.6 KiB/s; the interface promises 1.2 GiB/s"
    )
    assert not whats(slow_links(links, promised, Limits(min_bandwidth=0.0)))


def test_slow_nodes_and_ranks():
    def measurement(seconds, compute):
        results = [AllReduce("node", 2, 1024, 1.0), AllReduce("node", 2, 2**20, seconds)]
        return Measurement(compute=compute, all_reduces=results)

    measurements = {rank: measurement(0.1 if rank // 2 == 1 else 0.01, 1e12) for rank in range(6)}
    measurements[5].compute = 1e11
    assert whats(slow_nodes(measurements, make_cards(6), Limits())) == [
        "node1: its own ranks all-reduce at 10.0 MiB/s, the others' median is 100.0 MiB/s",
        "rank 5 (node2): computes at 0.1 TFLOP/s, the others' median is 1",
    ]
    assert not whats(slow_nodes(measurements, make_cards(6), Limits(slow_factor=20)))


def test_measurements_that_broke_off():
    measurements = {
        0: Measurement(stage="link from rank 0 to rank 2", error="timed out"),
        1: Measurement(),
        2: Measurement(stage="link from rank 0 to rank 2", error="timed out"),
    }
    assert whats(broken_measurements(measurements, make_cards(4))) == [
        "rank 3 (node1): went silent while measuring",
        "ranks 0, 2 (node0, node1), at link from rank 0 to rank 2: timed out",
    ]
    assert not whats(broken_measurements({}, make_cards(4)))


def test_bus_bandwidth():
    assert AllReduce("all", 4, 1000, 0.5).bus_bandwidth == 2 * 3 / 4 * 1000 / 0.5


@pytest.mark.parametrize("num", [1, 2, 3, 4, 7, 20])
def test_everyone_meets_everyone_once(num):
    rounds = round_robin(range(num))
    pairs = [frozenset(pair) for pairs in rounds for pair in pairs]
    assert len(pairs) == len(set(pairs)) == num * (num - 1) // 2
    for pairs in rounds:
        assert len({rank for pair in pairs for rank in pair}) == 2 * len(pairs)
    assert len(rounds) == max(0, num - 1 + num % 2)
