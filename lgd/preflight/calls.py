"""Plain TCP calls from rank to rank: who can reach whom, and how far the clocks are apart."""

from __future__ import annotations

import socket
import socketserver
import struct
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from lgd.preflight.card import Card, nodes_of

_CLOCK = struct.Struct("!d")
_NUM_ROUNDS = 8
_SECONDS = 3.0


@dataclass(frozen=True)
class Call:
    """One rank calling another.

    Attributes:
        source: rank that called.
        target: rank that was called.
        round_trip: seconds, the shortest of some; 0 where it failed.
        skew: seconds that the target's clock is ahead of the caller's, give or take half a round trip.
        error: why it failed, "" if it did not.
    """

    source: int
    target: int
    round_trip: float = 0.0
    skew: float = 0.0
    error: str = ""


class Listener(socketserver.ThreadingTCPServer):
    """Answers every byte with the time of its clock, in the background."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, host: str) -> None:
        """Listen at a free port of an address of this host; "" for all of them."""
        super().__init__((host, 0), _Answer)
        self.port = int(self.server_address[1])
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Answer(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        self.request.settimeout(_SECONDS)
        try:
            while self.request.recv(1):
                self.request.sendall(_CLOCK.pack(time.time()))
        except OSError:
            return


def targets_of(rank: int, cards: Mapping[int, Card]) -> list[int]:
    """Whom a rank calls: rank 0 for its clock, its next neighbour, and its like on all other nodes."""
    targets = {0} & cards.keys()
    for ranks in nodes_of(cards).values():
        if rank in ranks:
            targets.add(ranks[(ranks.index(rank) + 1) % len(ranks)])
        else:
            targets.add(ranks[cards[rank].local_rank % len(ranks)])
    return sorted(targets - {rank})


def call_all(card: Card, cards: Mapping[int, Card]) -> list[Call]:
    """Call all of this rank's targets at once."""
    targets = targets_of(card.rank, cards)
    with ThreadPoolExecutor(max_workers=max(1, len(targets))) as pool:
        return list(pool.map(lambda target: call(card, cards[target]), targets))


def call(source: Card, target: Card) -> Call:
    """Call one rank at the address that its traffic goes over, from that of the caller's."""
    if not target.address:
        return Call(source.rank, target.rank, error="it has no address")
    # One host's ranks meet anyhow; those of others must come from the interface they will use.
    origin = (source.address, 0) if source.address and source.host != target.host else None
    try:
        with socket.create_connection((target.address, target.port), _SECONDS, origin) as line:
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            rounds = [_ask_time(line) for _ in range(_NUM_ROUNDS)]
    except OSError as error:
        return Call(source.rank, target.rank, error=error.strerror or "no answer")
    round_trip, skew = min(rounds)  # the quickest is the least disturbed
    return Call(source.rank, target.rank, round_trip, skew)


def _ask_time(line: socket.socket) -> tuple[float, float]:
    """Round trip, and by how much the other clock is ahead if both ways took the same time."""
    begin, sent = time.perf_counter(), time.time()
    line.sendall(b"?")
    answer = b""
    while len(answer) < _CLOCK.size:
        received = line.recv(_CLOCK.size - len(answer))
        if not received:
            raise ConnectionResetError(0, "hung up")
        answer += received
    round_trip = time.perf_counter() - begin
    return round_trip, float(_CLOCK.unpack(answer)[0]) - (sent + round_trip / 2)
