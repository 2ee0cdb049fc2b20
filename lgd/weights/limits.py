"""How large weights may be: what comes from elsewhere must not fill the disk or the memory."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from torch import Tensor

from lgd.weights.report import WeightsError

LARGEST = 4 * 2**30
"""Bytes of a download, and of what a file unpacks to, unless it is itself larger. The largest of the weights
that are read here, a detector with its optimizer, have half of it."""


def in_words(num_bytes: int) -> str:
    """Bytes as "4.0 GiB"."""
    return f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 2**29 else f"{num_bytes / 2**20:.1f} MiB"


def check_archive(file: Path) -> None:
    """Refuse an archive that unpacks to far more than it is, before anything is unpacked.

    Raises:
        WeightsError: it does, or its list of contents cannot be read.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            total = sum(entry.file_size for entry in archive.infolist())
    except Exception as error:  # the bytes are anybody's
        raise WeightsError(f"{file}: not a readable torch file ({error})") from None
    _check(file, total, "unpacks to")


def check_values(file: Path, values: Iterable[object]) -> None:
    """Refuse tensors and arrays that share a few bytes but are large each, before any of them is copied.

    Raises:
        WeightsError: they are.
    """
    total = 0
    for value in values:
        if isinstance(value, Tensor):
            total += value.numel() * value.element_size()
        elif isinstance(value, np.ndarray):
            total += value.size * value.itemsize
    _check(file, total, "holds tensors of")


def _check(file: Path, total: int, does: str) -> None:
    most = max(LARGEST, file.stat().st_size)
    if total > most:
        raise WeightsError(
            f"{file}: {does} {in_words(total)}, and is {in_words(file.stat().st_size)} itself; at most "
            f"{in_words(most)} are read"
        )
