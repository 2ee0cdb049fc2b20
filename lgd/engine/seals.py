"""Seals of checkpoints: a JSON file beside each, with its size, its SHA-256 and what became known later."""

from __future__ import annotations

import errno
import hashlib
import json
from pathlib import Path
from typing import Any

from lgd.files import open_file, read_small

AMENDABLE = ("best", "owes_evaluation")
"""What a checkpoint's score changes of the state of its step."""

NO_SEAL = (ValueError, KeyError, TypeError, RecursionError)
"""What `read_seal` raises of a file that is none."""

_LARGEST = 2**20

_NO_FILE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EISDIR, errno.ENXIO)
"""What the system says of a link to nowhere, and `open_file` of what is no file."""


def make_seal(path: Path, step: int) -> dict[str, Any]:
    """What the seal of a checkpoint says, whose file is whole."""
    return {"step": step, "bytes": path.stat().st_size, "sha256": _sha256(path)}


def check_seal(path: Path) -> str | None:
    """Hold a checkpoint against its seal; return what is wrong, or None."""
    try:
        seal = read_seal(path)
    except FileNotFoundError:
        return "no seal: writing it did not finish"
    except (OSError, *NO_SEAL):
        return "unreadable seal"
    try:
        size = path.stat().st_size
        if size != seal["bytes"]:
            return f"{size} bytes instead of {seal['bytes']}"
        return None if _sha256(path) == seal["sha256"] else "its checksum differs"
    except OSError as error:
        if error.errno in _NO_FILE:
            return error.strerror
        raise  # a disk that fails for a moment has damaged nothing


def read_seal(path: Path) -> dict[str, Any]:
    """What the seal of a checkpoint says; raises one of `NO_SEAL` where that is none."""
    seal: dict[str, Any] = json.loads(read_small(path.with_suffix(".json"), _LARGEST))
    amended = seal.get("amended", {}) if isinstance(seal, dict) else None
    if (
        type(seal["bytes"]) is not int
        or type(seal["sha256"]) is not str
        or not isinstance(amended, dict)
        or not amended.keys() <= set(AMENDABLE)
    ):
        raise ValueError("not a seal")
    best = amended.get("best", {})
    if not isinstance(best, dict) or any(type(value) not in (int, float) for value in best.values()):
        raise ValueError("not a seal")
    return seal


def read_amendments(path: Path) -> dict[str, Any]:
    """What became known after a checkpoint was written."""
    amended: dict[str, Any] = read_seal(path).get("amended", {})
    return amended


def _sha256(path: Path) -> str:
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
