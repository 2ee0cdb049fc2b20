"""The report for people: plain text in aligned columns."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence

from lgd.preflight.calls import Call
from lgd.preflight.card import Card, nodes_of
from lgd.preflight.collectives import AllReduce, Link, Measurement
from lgd.preflight.findings import Finding, format_bytes
from lgd.preflight.place import Place
from lgd.preflight.storage import Storage
from lgd.words import counted

_MOST_LINKS = 12
_SCOPES = {"node": "within nodes", "between": "one rank a node", "all": "all ranks"}


def align(rows: Sequence[Sequence[str]], left: int = 1) -> Iterator[str]:
    """Yield the rows with their cells in columns, the first `left` to the left, the others to the right."""
    widths = [max(len(row[c]) for row in rows) for c in range(len(rows[0]))]
    for row in rows:
        cells = [
            cell.ljust(width) if c < left else cell.rjust(width)
            for c, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()


def describe_ranks(place: Place, cards: Mapping[int, Card]) -> Iterator[str]:
    """The table of ranks and hosts; neighbours that say the same share a row."""
    nodes = nodes_of(cards)
    yield (
        f"{len(cards)} of {counted(place.world_size, 'rank')} on {counted(len(nodes), 'host')}, started "
        f"by {place.launcher}"
    )
    yield ""
    rows = [["ranks", "host", "device", "driver", "interface", "address", "chosen by", "versions"]]
    for node, ranks in nodes.items():
        groups: dict[tuple[str, ...], list[int]] = {}
        for rank in ranks:
            groups.setdefault(tuple(_cells(cards[rank])), []).append(rank)
        rows += [[_span(members), node, *cells] for cells, members in groups.items()]
    yield from align(rows, left=len(rows[0]))


def _cells(card: Card) -> list[str]:
    address = f"{card.address}/{card.prefix}" if card.address else "-"
    versions = [f"{name} {version}" for name, version in card.versions.items()]
    versions += [] if card.backend == "nccl" else ["gloo"]
    return [
        card.device_name, card.driver or "-", card.interface or "-", address, card.source, ", ".join(versions)
    ]  # fmt: skip


def _span(ranks: Sequence[int]) -> str:
    whole = list(ranks) == list(range(ranks[0], ranks[-1] + 1))
    return (
        str(ranks[0])
        if len(ranks) == 1
        else f"{ranks[0]}-{ranks[-1]}"
        if whole
        else ",".join(map(str, ranks))
    )


def describe_clocks(calls: Sequence[Call], cards: Mapping[int, Card]) -> Iterator[str]:
    """Each node's clock against rank 0's."""
    nodes = {rank: node for node, ranks in nodes_of(cards).items() for rank in ranks}
    to_rank_0 = {nodes[c.source]: c for c in reversed(calls) if c.target == 0 and not c.error}
    rows = [
        [node, f"{-call.skew * 1e3:+.1f} ms", f"{call.round_trip * 1e3:.2f} ms"]
        for node, call in sorted(to_rank_0.items())
        if node != nodes.get(0)
    ]
    if rows:
        yield from align([["clock", "against rank 0", "round trip"], *rows])


def describe_storage(storages: Sequence[Storage], cards: Mapping[int, Card]) -> Iterator[str]:
    """Data sets, shared memory and the output folder of each node."""
    rows = [["data set", "host", "images", "objects", "annotations", "image files"]]
    for storage in storages:
        for name, found in storage.datasets.items():
            numbers = [
                str(found.num_images), str(found.num_objects), found.content_hash[:12], found.sample_hash[:12]
            ]  # fmt: skip
            rows.append([name, cards[storage.rank].host, *(["-"] * 4 if found.error else numbers)])
    if len(rows) > 1:
        yield from align(sorted(rows[:1]) + sorted(rows[1:]), left=2)
        yield ""
    rows = [["disk", "host", "free", "needed"]]
    for storage in storages:
        host = cards[storage.rank].host
        free = format_bytes(storage.shared_free) if storage.shared_free >= 0 else "-"
        rows.append(["/dev/shm", host, free, format_bytes(storage.shared_needed)])
        if storage.output_needed:
            rows.append(
                [storage.output, host, format_bytes(storage.output_free), format_bytes(storage.output_needed)]
            )
    if len(rows) > 1:
        yield from align(rows, left=2)


def describe_speed(
    measurements: Mapping[int, Measurement], cards: Mapping[int, Card], gradient_bytes: int
) -> Iterator[str]:
    """Links between nodes, all-reduces by size, and what they mean for a step of the recipe."""
    links = [link for measurement in measurements.values() for link in measurement.links]
    yield from _describe_links(links, cards)
    rows = _all_reduce_rows(measurements)
    if rows:
        yield from align([["all-reduce", "ranks", "size", "time", "algorithm", "bus"], *rows])
        yield ""
    speeds = [m.compute for m in measurements.values() if m.compute]
    if speeds:
        yield (
            f"matrix products: {min(speeds) / 1e12:.3g} to {max(speeds) / 1e12:.3g} TFLOP/s a rank, median "
            f"{statistics.median(speeds) / 1e12:.3g}"
        )
    reduced = [r for m in measurements.values() for r in m.all_reduces if r.num_ranks == len(cards)]
    if gradient_bytes and reduced:
        largest = max(r.num_bytes for r in reduced)
        seconds = max(r.seconds for r in reduced if r.num_bytes == largest) * gradient_bytes / largest
        amount = format_bytes(gradient_bytes)
        yield f"a step of the recipe all-reduces {amount}: {seconds * 1e3:.0f} ms at this speed"


def _describe_links(links: Sequence[Link], cards: Mapping[int, Card]) -> Iterator[str]:
    if not links:
        return
    nodes = {rank: node for node, ranks in nodes_of(cards).items() for rank in ranks}
    shown = sorted(links, key=lambda link: (link.source, link.target))
    if len(links) > _MOST_LINKS:
        shown = sorted(links, key=lambda link: link.bandwidth)[: _MOST_LINKS // 2]
        speeds = [link.bandwidth for link in links]
        yield (
            f"{counted(len(links), 'link')} between nodes: {format_bytes(min(speeds))}/s to "
            f"{format_bytes(max(speeds))}/s, median {format_bytes(statistics.median(speeds))}/s; the slowest:"
        )
    rows = [
        [
            f"{nodes[link.source]} -> {nodes[link.target]}",
            f"{link.latency * 1e6:.0f} us",
            f"{format_bytes(link.bandwidth)}/s",
        ]
        for link in shown
    ]
    yield from align([["link", "latency", "bandwidth"], *rows])
    yield ""


def _all_reduce_rows(measurements: Mapping[int, Measurement]) -> list[list[str]]:
    """A row for each scope and size, with the time of the slowest rank."""
    slowest: dict[tuple[str, int], AllReduce] = {}
    for measurement in measurements.values():
        for result in measurement.all_reduces:
            key = result.scope, result.num_bytes
            if key not in slowest or slowest[key].seconds < result.seconds:
                slowest[key] = result
    rows = []
    for scope, name in _SCOPES.items():
        for (found, size), result in sorted(slowest.items()):
            if found == scope:
                rows.append([
                    name, str(result.num_ranks), format_bytes(size), f"{result.seconds * 1e3:.2f} ms",
                    f"{format_bytes(size / result.seconds)}/s", f"{format_bytes(result.bus_bandwidth)}/s",
                ])  # fmt: skip
    return rows


def describe_findings(findings: Sequence[Finding]) -> Iterator[str]:
    """The short list at the end."""
    if not findings:
        yield "all well"
        return
    yield f"{counted(len(findings), 'finding')}:"
    for number, finding in enumerate(findings, start=1):
        yield f"{number:>3}. {finding.what}"
        yield f"     -> {finding.way_out}"
