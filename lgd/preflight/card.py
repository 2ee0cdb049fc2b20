"""What a rank says of itself: where it runs, with which device, versions and network."""

from __future__ import annotations

import os
import platform
import re
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from lgd import __version__
from lgd.config.values import ConfigError
from lgd.preflight.place import Place
from lgd.ranks.interfaces import address_facing, choose_interface, list_interfaces, resolve
from lgd.ranks.process_group import select_device


@dataclass(frozen=True)
class Card:
    """One rank.

    Attributes:
        rank: its number.
        local_rank: its number on its host.
        host: the host's name.
        node: the launcher's number of the host, -1 where it has none.
        device: "cpu", "cuda:0", ...; "" where it has none.
        device_name: such as "NVIDIA H100 80GB HBM3", or "CPU".
        driver: of the GPU, "" without.
        backend: "gloo" or "nccl".
        versions: of what must be the same everywhere, by name.
        interface: that its traffic goes over, "" unknown.
        address: of the interface, "" unknown.
        prefix: bits of the address that name the network.
        speed: of the interface, Mbit/s; None unknown.
        source: what chose the interface.
        interfaces: all of the host, as text.
        port: where it answers the others' calls.
        config_hash: of its settings, "" without a recipe.
        problems: what it found wrong with itself: (what, way out) each.
    """

    rank: int
    local_rank: int
    host: str
    node: int
    device: str
    device_name: str
    driver: str
    backend: str
    versions: Mapping[str, str]
    interface: str
    address: str
    prefix: int
    speed: int | None
    source: str
    interfaces: tuple[str, ...]
    port: int
    config_hash: str
    problems: tuple[tuple[str, str], ...]


def make_card(
    place: Place, device_setting: str, config_hash: str, problems: Iterable[tuple[str, str]], port: int
) -> tuple[Card, torch.device | None]:
    """Look at this rank.

    Args:
        place: where it stands.
        device_setting: MODEL.DEVICE.
        config_hash: of its settings.
        problems: found already.
        port: where it answers.

    Returns:
        The card, and the device; None where it cannot have the one it should.
    """
    found = list(problems)
    device: torch.device | None = None
    try:
        device = select_device(device_setting, place.local_rank)
    except ConfigError as error:
        found.append((str(error), "see nvidia-smi and CUDA_VISIBLE_DEVICES on that host"))
    backend = "nccl" if device is not None and device.type == "cuda" else "gloo"
    interfaces = list_interfaces()
    choice = choose_interface(
        interfaces,
        backend=backend,
        requested=os.environ.get(f"{backend.upper()}_SOCKET_IFNAME", ""),
        host_address=resolve(socket.gethostname()),
        facing=address_facing(place.master_address),
        num_hosts=1 if place.is_one_machine else 2,  # one, or more than one
    )
    if choice.problem:
        found.append((choice.problem, choice.way_out))
    card = Card(
        rank=place.rank,
        local_rank=place.local_rank,
        host=socket.gethostname(),
        node=place.node,
        device=str(device) if device is not None else "",
        device_name=torch.cuda.get_device_name(device) if backend == "nccl" else "CPU" if device else "none",
        driver=_driver(),
        backend=backend,
        versions=_versions(backend),
        interface=choice.interface.name if choice.interface else "",
        address=choice.interface.address if choice.interface else "",
        prefix=choice.interface.prefix if choice.interface else 0,
        speed=choice.interface.speed if choice.interface else None,
        source=choice.source,
        interfaces=tuple(str(interface) for interface in interfaces),
        port=port,
        config_hash=config_hash,
        problems=tuple(found),
    )
    return card, device


def _versions(backend: str) -> dict[str, str]:
    versions = {"lgd": __version__, "torch": torch.__version__, "Python": platform.python_version()}
    if backend == "nccl":
        versions["NCCL"] = ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]
        versions["CUDA"] = str(torch.version.cuda)
    return versions


def _driver() -> str:
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        return ""
    match = re.search(r"\b(\d{3,}\.\d+(?:\.\d+)?)\b", text)
    return match[1] if match else ""


def nodes_of(cards: Mapping[int, Card]) -> dict[str, list[int]]:
    """The ranks of each node, by its host's name, in the order of their first ranks.

    Two nodes of one host name (as the launcher numbers them) are told apart by the number: "name#1".
    """
    numbers: dict[str, set[int]] = {}
    for card in cards.values():
        numbers.setdefault(card.host, set()).add(card.node)
    nodes: dict[str, list[int]] = {}
    for rank, card in sorted(cards.items()):
        name = card.host if len(numbers[card.host]) == 1 else f"{card.host}#{card.node}"
        nodes.setdefault(name, []).append(rank)
    return nodes


def format_ranks(ranks: Iterable[int]) -> str:
    """Ranks in words: "rank 3", "ranks 0-3, 8"."""
    runs: list[list[int]] = []
    for rank in sorted(ranks):
        if runs and rank == runs[-1][-1] + 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    text = ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
    return f"rank {text}" if sum(map(len, runs)) == 1 else f"ranks {text}"
