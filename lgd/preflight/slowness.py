"""Which node, link or rank is slow, against the median of the others."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

from lgd.preflight.card import Card, format_ranks, nodes_of
from lgd.preflight.collectives import Link, Measurement
from lgd.preflight.findings import Finding, Limits, format_bytes, who

T = TypeVar("T")

_SHARE_OF_PROMISED = 50
"""Even gloo on a busy machine gets more than this part of what an interface promises."""


def slow_links(
    measurements: Mapping[int, Measurement], cards: Mapping[int, Card], limits: Limits
) -> Iterator[Finding]:
    """Nodes all of whose links are slow, and single links that are, against the median of the others."""
    node_of = {rank: node for node, ranks in nodes_of(cards).items() for rank in ranks}
    links = {
        (node_of[link.source], node_of[link.target]): link
        for measurement in measurements.values()
        for link in measurement.links
    }
    slow = {}
    for pair, link in links.items():
        others = [other.bandwidth for other in links.values() if other != link]
        reason = _why_slow(link, others, cards, limits)
        if reason:
            slow[pair] = reason
    for node in dict.fromkeys(name for pair in slow for name in pair):
        own = [pair for pair in links if node in pair]
        if len(own) > 2 and all(pair in slow for pair in own):
            fastest = max(links[pair].bandwidth for pair in own)
            yield Finding(
                f"{node} is slow to and from every other node: {format_bytes(fastest)}/s at best; "
                f"{slow[own[0]]}",
                f"leave {node} out, or look at its cable, port and {_interface(node, cards)}",
            )
            slow = {pair: reason for pair, reason in slow.items() if node not in pair}
    for (sender, receiver), reason in slow.items():
        yield Finding(
            f"slow link from {sender} to {receiver}: "
            f"{format_bytes(links[sender, receiver].bandwidth)}/s; {reason}",
            f"look at {_interface(sender, cards)} of {sender}, {_interface(receiver, cards)} of {receiver}, "
            "and what lies between them",
        )


def _interface(node: str, cards: Mapping[int, Card]) -> str:
    """The interface of a node's first rank, in words."""
    return cards[nodes_of(cards)[node][0]].interface or "the interface"


def _why_slow(link: Link, others: Sequence[float], cards: Mapping[int, Card], limits: Limits) -> str:
    """Why a link counts as slow, "" if it does not."""
    if others and link.bandwidth * limits.slow_factor < statistics.median(others):
        return f"the others' median is {format_bytes(statistics.median(others))}/s"
    if limits.min_bandwidth is not None:
        least = limits.min_bandwidth
        return f"the least allowed is {format_bytes(least)}/s" if link.bandwidth < least else ""
    speeds = [cards[rank].speed or 0 for rank in (link.source, link.target)]
    promised = min(speeds) * 1e6 / 8  # Mbit/s to bytes a second
    if link.bandwidth < promised / _SHARE_OF_PROMISED:
        return f"the interface promises {format_bytes(promised)}/s"
    return ""


def slow_nodes(
    measurements: Mapping[int, Measurement], cards: Mapping[int, Card], limits: Limits
) -> Iterator[Finding]:
    """Nodes whose own ranks all-reduce slowly, and ranks that compute slowly, against the others' median."""
    nodes = nodes_of(cards)
    times = {}
    for node, ranks in nodes.items():
        within = [
            r
            for rank in ranks
            if rank in measurements
            for r in measurements[rank].all_reduces
            if r.scope == "node"
        ]
        if within:
            largest = max(r.num_bytes for r in within)
            times[node] = min(r.bus_bandwidth for r in within if r.num_bytes == largest)
    for node, median in _far_below_others(times, limits.slow_factor):
        yield Finding(
            f"{node}: its own ranks all-reduce at {format_bytes(times[node])}/s, the others' median is "
            f"{format_bytes(median)}/s",
            "look at its NVLink or PCIe (nvidia-smi topo -m), and for other jobs on it",
        )
    speeds = {rank: m.compute for rank, m in measurements.items() if m.compute}
    for rank, median in _far_below_others(speeds, limits.slow_factor):
        yield Finding(
            f"{who(rank, cards)}: computes at {speeds[rank] / 1e12:.3g} TFLOP/s, the others' median is "
            f"{median / 1e12:.3g}",
            "look for other jobs, heat and clocks there (nvidia-smi -q -d PERFORMANCE)",
        )


def _far_below_others(values: Mapping[T, float], factor: float) -> Iterator[tuple[T, float]]:
    for key, value in values.items():
        others = [other for name, other in values.items() if name != key]
        if others and value * factor < statistics.median(others):
            yield key, statistics.median(others)


def broken_measurements(
    measurements: Mapping[int, Measurement], cards: Mapping[int, Card]
) -> Iterator[Finding]:
    """Measurements that ended in an error or not at all, with what each rank was at."""
    if not measurements:
        return
    for rank in cards.keys() - measurements.keys():
        yield Finding(f"{who(rank, cards)}: went silent while measuring", "look at its output")
    ranks: dict[tuple[str, str], list[int]] = {}
    for rank, measurement in measurements.items():
        if measurement.error:
            ranks.setdefault((measurement.stage, measurement.error), []).append(rank)
    for (stage, error), members in ranks.items():
        where = ", ".join(dict.fromkeys(cards[rank].host for rank in members))
        yield Finding(
            f"{format_ranks(members)} ({where}), at {stage}: {error}",
            "a rank that others wait for is the one to look at; NCCL_DEBUG=INFO says more",
        )
