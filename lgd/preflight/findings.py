"""What is wrong, decided from what the ranks say; each finding comes with a way out."""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from lgd.preflight.calls import Call
from lgd.preflight.card import Card, format_ranks, nodes_of
from lgd.preflight.place import Place
from lgd.preflight.storage import Dataset, Storage

T = TypeVar("T")


@dataclass(frozen=True)
class Finding:
    """Something wrong.

    Attributes:
        what: with the rank and host that it is about.
        way_out: what to do.
    """

    what: str
    way_out: str


@dataclass(frozen=True)
class Limits:
    """From where on a number is a finding.

    Attributes:
        slow_factor: times slower than the median of the others.
        min_bandwidth: bytes a second between two nodes; None takes a fiftieth of the interface's speed.
        max_skew: seconds between two clocks.
    """

    slow_factor: float = 3.0
    min_bandwidth: float | None = None
    max_skew: float = 1.0


def who(rank: int, cards: Mapping[int, Card]) -> str:
    """A rank with its host: "rank 3 (hostB)"."""
    return f"rank {rank} ({cards[rank].host})" if rank in cards else f"rank {rank}"


def missing_ranks(place: Place, cards: Mapping[int, Card], seconds: float) -> Iterator[Finding]:
    """Name those that did not come, with the hosts that others of their node run on."""
    hosts: dict[str, list[int]] = {}
    for rank in sorted(set(range(place.world_size)) - cards.keys()):
        hosts.setdefault(_host_of_missing(rank, place, cards), []).append(rank)
    for host, ranks in hosts.items():
        yield Finding(
            f"{format_ranks(ranks)} of {place.world_size} did not come in {seconds:.0f} s{host}",
            "look at the output of that node; --timeout waits longer",
        )


def _host_of_missing(rank: int, place: Place, cards: Mapping[int, Card]) -> str:
    if not place.local_world_size:
        return ""
    node = rank // place.local_world_size
    hosts = {card.host for card in cards.values() if card.rank // place.local_world_size == node}
    return f" (host {hosts.pop()})" if hosts else f" (node {node}, of which nobody came)"


def own_problems(cards: Mapping[int, Card]) -> Iterator[Finding]:
    """What ranks found wrong with themselves, said once for each host."""
    ranks: dict[tuple[str, str, str], list[int]] = {}
    for card in cards.values():
        for what, way_out in card.problems:
            ranks.setdefault((card.host, what, way_out), []).append(card.rank)
    for (host, what, way_out), members in ranks.items():
        yield Finding(f"{format_ranks(members)} ({host}): {what}", way_out)


def odd_ones(cards: Mapping[int, Card]) -> Iterator[Finding]:
    """Ranks whose versions, device or settings differ from those of most."""
    names = sorted({name for card in cards.values() for name in card.versions})
    for name in names:
        yield from _odd(cards, name, partial(_version, name), "install the same everywhere")
    yield from _odd(cards, "device", lambda card: card.device_name, "use nodes of one kind")
    if any(card.driver for card in cards.values()):
        yield from _odd(cards, "driver", lambda card: card.driver or "none", "update that host's driver")
    yield from _odd(
        cards,
        "settings",
        lambda card: f"hash {card.config_hash[:12]}" if card.config_hash else "unread",
        "start all ranks with the same recipe and the same KEY VALUE pairs",
    )


def _version(name: str, card: Card) -> str:
    return card.versions.get(name, "none")


def _odd(
    cards: Mapping[int, Card], name: str, read: Callable[[Card], str], way_out: str
) -> Iterator[Finding]:
    usual = most_common([read(card) for card in cards.values()])
    for host, ranks in nodes_of(cards).items():
        for value in dict.fromkeys(read(cards[rank]) for rank in ranks):
            members = [rank for rank in ranks if read(cards[rank]) == value]
            if value != usual:
                yield Finding(f"{format_ranks(members)} ({host}): {name} {value}, most have {usual}", way_out)


def other_networks(cards: Mapping[int, Card]) -> Iterator[Finding]:
    """Ranks that talk over another network than most."""
    odd, usual = _off_network(cards)
    names = {card.interface for rank, card in cards.items() if card.address and rank not in odd}
    for host, ranks in nodes_of({rank: cards[rank] for rank in odd}).items():
        for interface in dict.fromkeys(cards[rank].interface for rank in ranks):
            card = next(cards[rank] for rank in ranks if cards[rank].interface == interface)
            members = [rank for rank in ranks if cards[rank].interface == interface]
            yield Finding(
                f"{format_ranks(members)} ({host}): on another interface, {interface} {card.address} "
                f"(by {card.source}); the others talk over {'/'.join(sorted(names))} {usual}",
                f"set {card.backend.upper()}_SOCKET_IFNAME on {host} to its interface in {usual}; "
                f"it has {', '.join(card.interfaces)}",
            )


def _off_network(cards: Mapping[int, Card]) -> tuple[list[int], str]:
    """The ranks on another network than most, and the network of most.

    Where every node has a network of its own, routers are between them on purpose, and nothing is odd.
    """
    networks = {
        rank: _network(card)
        for rank, card in cards.items()
        if card.address and not ipaddress.ip_address(card.address).is_loopback
    }
    nodes = nodes_of({rank: cards[rank] for rank in networks})
    if not networks or (len(nodes) > 2 and len(set(networks.values())) >= len(nodes)):
        return [], ""
    usual = most_common(list(networks.values()))  # of equally many, that of the lowest rank
    return [rank for rank, network in networks.items() if network != usual], usual


def _network(card: Card) -> str:
    return str(ipaddress.ip_interface(f"{card.address}/{card.prefix}").network)


def unreachable(calls: Iterable[Call], cards: Mapping[int, Card]) -> Iterator[Finding]:
    """Nodes that others cannot call; ranks on another network, which that explains, are left out."""
    nodes = {rank: node for node, ranks in nodes_of(cards).items() for rank in ranks}
    explained, _ = _off_network(cards)
    failed: dict[tuple[str, str], list[Call]] = {}
    for call in calls:
        if call.error and not {call.source, call.target} & set(explained):
            failed.setdefault((nodes[call.source], nodes[call.target]), []).append(call)
    for (source, target), members in failed.items():
        card = cards[members[0].target]
        yield Finding(
            f"{source} cannot reach {target}: {format_ranks({call.source for call in members})} to "
            f"{format_ranks({call.target for call in members})} at {card.interface} {card.address}, "
            f"{members[0].error}",
            "look at interfaces, routes and firewalls: all ports between the nodes must be open",
        )


def skewed_clocks(calls: Iterable[Call], cards: Mapping[int, Card], limits: Limits) -> Iterator[Finding]:
    """Nodes whose clock differs from rank 0's."""
    seen = set()
    for call in calls:
        skew = -call.skew
        host = cards[call.source].host
        uncertain = call.round_trip / 2
        if call.target or call.error or host in seen or abs(skew) - uncertain <= limits.max_skew:
            continue
        seen.add(host)
        yield Finding(
            f"clock of {host} is {abs(skew):.1f} s {'ahead of' if skew > 0 else 'behind'} rank 0's",
            "set it by NTP (chrony); file times and logs of the nodes do not fit together",
        )


def storage_problems(
    storages: Sequence[Storage], cards: Mapping[int, Card], expected: Sequence[int]
) -> Iterator[Finding]:
    """Data sets that are missing or differ, shared memory and disks that are too small.

    Args:
        storages: what came.
        cards: all ranks.
        expected: the ranks that should have looked.
    """
    hosts = {storage.rank: cards[storage.rank].host for storage in storages}
    names = dict.fromkeys(name for storage in storages for name in storage.datasets)
    for name in names:
        yield from _dataset_problems(
            name, {hosts[s.rank]: s.datasets[name] for s in storages if name in s.datasets}
        )
    for storage in storages:
        host = hosts[storage.rank]
        if storage.error:
            yield Finding(f"{host}: {storage.error}", "mend the recipe, or look at that node")
        if 0 <= storage.shared_free < storage.shared_needed:
            yield Finding(
                f"{host}: /dev/shm has {format_bytes(storage.shared_free)} free, the loaders may want "
                f"{format_bytes(storage.shared_needed)}",
                "docker run --shm-size, or an emptyDir of medium Memory; or fewer DATALOADER.NUM_WORKERS",
            )
        if storage.output_error:
            yield Finding(
                f"{host}: {storage.output_error}",
                "OUTPUT_DIR must be a folder that all nodes share and rank 0 may write to",
            )
        elif storage.output_free < storage.output_needed:
            yield Finding(
                f"{host}: {storage.output} has {format_bytes(storage.output_free)} free, the checkpoints "
                f"take {format_bytes(storage.output_needed)}",
                "another OUTPUT_DIR, or fewer TRAIN.KEEP_CHECKPOINTS",
            )
    for rank in set(expected) - hosts.keys():
        yield Finding(
            f"{who(rank, cards)}: did not finish looking at its data in time", "look at its file systems"
        )


def _dataset_problems(name: str, found: Mapping[str, Dataset]) -> Iterator[Finding]:
    failed: dict[str, list[str]] = {}
    for host, dataset in found.items():
        if dataset.error:
            failed.setdefault(dataset.error, []).append(host)
    nobody_has_it = sum(map(len, failed.values())) == len(found)
    way_out = "mend DATASETS" if nobody_has_it else "mount or copy the data there (DATASETS.ROOT)"
    for error, hosts in failed.items():
        yield Finding(f"{', '.join(hosts)}: cannot read data set {name}: {error}", way_out)
    whole = {host: dataset for host, dataset in found.items() if not dataset.error}
    for what, key in (("annotations", "content_hash"), ("image files", "sample_hash")):
        values = {host: str(getattr(dataset, key)) for host, dataset in whole.items()}
        usual = most_common(list(values.values())) if values else ""
        odd = [host for host, value in values.items() if value != usual]
        if odd:
            yield Finding(
                f"{', '.join(odd)}: {what} of data set {name} differ from those of most nodes "
                f"({values[odd[0]][:12]}, most have {usual[:12]})",
                "copy the same data to every node",
            )
            return


def most_common(values: Sequence[T]) -> T:
    """The value that most have; of equally many, the first."""
    return Counter(values).most_common(1)[0][0]


def format_bytes(number: float) -> str:
    """Bytes in the unit that fits: "1.5 GiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.0f} B" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"
