"""What pictures look like in short: small grey thumbnails, kept beside the annotations."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from lgd.data.columns import open_columns, write_columns
from lgd.data.folder import folders, make_folder
from lgd.data.index import AnnotationIndex
from lgd.data.opened import open_image
from lgd.notices import follow
from lgd.ranks.cores import count_cores

SIDE = 16
"""Width and height of a thumbnail, pixels."""

Thumbnails = npt.NDArray[np.uint8]


def picture_paths(index: AnnotationIndex) -> list[Path]:
    """Return the paths of all pictures of a set."""
    names = index.file_names()
    starts = index.columns["part_offsets"].tolist()
    return [
        source.image_dir / name
        for source, (start, end) in zip(index.sources, pairwise(starts), strict=True)
        for name in names[start:end]
    ]


def file_states(paths: Sequence[Path]) -> list[tuple[int, int]]:
    """Size in bytes and time of change of each file; (-1, 0) of those that cannot be asked for."""
    return [_state(path) for path in paths]


def _state(path: Path) -> tuple[int, int]:
    try:
        state = os.stat(path)  # noqa: PTH116 (three times as fast as pathlib's)
    except (OSError, ValueError):
        return -1, 0
    return state.st_size, state.st_mtime_ns


def read_thumbnails(
    index: AnnotationIndex, paths: Sequence[Path], states: Sequence[tuple[int, int]]
) -> Thumbnails:
    """Read thumbnails of all pictures of a set: (I, 16, 16), grey, upright; black where one is unreadable.

    They are kept beside the annotations for as long as no file's name, size or time changes.

    Args:
        index: the set.
        paths: its pictures.
        states: of these, as from `file_states`.
    """
    known = hashlib.sha256(repr((SIDE, [*map(os.fspath, index.file_names())], states)).encode()).hexdigest()
    name = f"{known[:16]}.lgd-thumbnails"
    for folder in folders(index.json_path):
        with contextlib.suppress(OSError, ValueError, KeyError):
            kept = open_columns(folder / name)[0]["thumbnails"]
            if kept.shape == (len(paths), SIDE, SIDE) and kept.dtype == np.uint8:
                return kept
    made = _make_thumbnails(paths)
    for folder in folders(index.json_path):
        try:
            make_folder(folder)
            write_columns(folder / name, {"thumbnails": made}, {})
        except OSError:
            continue
        break
    return made


def _make_thumbnails(paths: Sequence[Path]) -> Thumbnails:
    cores = count_cores()
    with ThreadPoolExecutor(cores) as pool:  # Pillow decodes without Python's lock
        made = list(follow(pool.map(_thumbnail, paths), "looking at the pictures", len(paths)))
    return np.stack(made) if made else np.zeros((0, SIDE, SIDE), dtype=np.uint8)


def _thumbnail(path: Path) -> Thumbnails:
    try:
        with open_image(path) as image:
            image.draft("L", (4 * SIDE, 4 * SIDE))  # a JPEG: decoded at an eighth of its size
            grey = ImageOps.exif_transpose(image).convert("L")
            return np.array(grey.resize((SIDE, SIDE), Image.Resampling.BOX))
    except Exception:  # what decoders raise on damaged files is without limit; training says which they are
        return np.zeros((SIDE, SIDE), dtype=np.uint8)
