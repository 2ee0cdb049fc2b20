"""Large pictures kept as they were decoded, so that it is done once and not in every epoch.

What is kept is what `read_picture` gave, bit by bit, under a name that hangs on the file's path, size and
time of change and on how it was decoded: a picture that changes is decoded anew. Any number of processes and
runs may share a folder. It can be deleted at any time.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import time
import warnings
from pathlib import Path

import torch

from lgd.data.columns import open_columns, write_columns
from lgd.data.deep import Range
from lgd.data.images import Picture, read_picture
from lgd.files import clear_leftovers

_FORMAT = 1
"""Counts up with every change of what pictures become."""

_FREE_SHARE = 0.1
"""Of the disk, which is left to others."""

_ABANDONED_AFTER = 3600.0
"""Seconds in which whoever writes a picture has ended, one way or the other."""


def make_cache(folder: Path) -> None:
    """Make a folder for pictures, and remove what killed processes left in it half-written.

    Raises:
        OSError: it cannot be made or written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
    clear_leftovers(folder, before=time.time() - _ABANDONED_AFTER)


def read_cached(folder: Path, path: Path, value_range: Range | None, reduction: int) -> Picture:
    """Read a picture as `read_picture` does, from the folder where it is there.

    It is put there otherwise, while a tenth of the disk is free; a disk that refuses it stops nothing.

    Args:
        folder: see `make_cache`.
        path: the picture.
        value_range: see `read_picture`.
        reduction: likewise.

    Raises:
        ImageError: see `read_picture`.
    """
    try:
        kept = folder / _name(path, value_range, reduction)
    except OSError:  # the picture is absent, which is said better there
        return read_picture(path, value_range, reduction)
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # absent or damaged
        return _open(kept)
    picture = read_picture(path, value_range, reduction)
    with contextlib.suppress(OSError):
        disk = shutil.disk_usage(folder)
        if disk.free - picture.pixels.nbytes > _FREE_SHARE * disk.total:
            _write(kept, picture)
    return picture


def _name(path: Path, value_range: Range | None, reduction: int) -> str:
    status = path.stat()
    facts = (_FORMAT, str(path.absolute()), status.st_size, status.st_mtime_ns, value_range, reduction)
    return hashlib.sha256(repr(facts).encode(errors="surrogateescape")).hexdigest()[:32]


def _open(path: Path) -> Picture:
    arrays, numbers = open_columns(path, verify=False)  # whose cost would be that of the rest
    pixels = arrays["pixels"]
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != "u1":
        raise ValueError("it is no picture")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, that the memory is not writable
        tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    return Picture(tensor, int(numbers["height"]), int(numbers["width"]), int(numbers["reduction"]))


def _write(path: Path, picture: Picture) -> None:
    numbers = {"height": picture.height, "width": picture.width, "reduction": picture.reduction}
    write_columns(path, {"pixels": picture.pixels.permute(1, 2, 0).numpy()}, numbers)
