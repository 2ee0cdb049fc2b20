"""What must be the same on all ranks before they work together: code, settings, data."""

from __future__ import annotations

import hashlib
import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import torch

import lgd
from lgd.config.values import ConfigError
from lgd.ranks import process_group

_MOST_DIFFERENCES = 5


@cache
def source_hash() -> str:
    """SHA-256 over this library's Python files and their places, hexadecimal."""
    folder = Path(lgd.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def code_facts() -> dict[str, str]:
    """The versions of the code, by what they are versions of."""
    return {"torch": torch.__version__, "lgd": f"{lgd.__version__} (source {source_hash()[:12]})"}


def require_equal(facts: Mapping[str, object]) -> None:
    """Compare facts over the ranks; every rank calls it.

    Args:
        facts: values by what they are values of, such as a setting or a data set; compared as text.

    Raises:
        ConfigError: on every rank, some rank has another value than most; rank, host and values are named.
    """
    here = (socket.gethostname(), {name: str(value) for name, value in facts.items()})
    ranks = process_group.all_gather_objects(here)
    differences = _find_differences(ranks)
    if not differences:
        return
    more = len(differences) - _MOST_DIFFERENCES
    raise ConfigError(
        "the ranks do not agree: "
        + "; ".join(differences[:_MOST_DIFFERENCES])
        + (f"; and {more} more" if more > 0 else "")
        + ". Start the same code with the same settings and data everywhere"
    )


def _find_differences(ranks: Sequence[tuple[str, Mapping[str, str]]]) -> list[str]:
    """A line for every value that differs from that of most ranks, of rank 0 where there is no most."""
    lines = []
    for name in dict.fromkeys(name for _, facts in ranks for name in facts):
        values = [facts.get(name, "nothing") for _, facts in ranks]
        # Counter keeps the order of the ranks among equally frequent values.
        (usual, count), *_ = Counter(values).most_common()
        others = "the others" if count > 1 else "rank 0"
        lines += [
            f"rank {rank} on {host} has {name} {value}, {others} {usual}"
            for rank, ((host, _), value) in enumerate(zip(ranks, values, strict=True))
            if value != usual
        ]
    return lines
