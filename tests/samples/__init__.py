"""Sets of pictures that tests read: one that lies here, and those in the folder that LGD_TEST_DATA names."""

from __future__ import annotations

import os
from pathlib import Path

BCCD = Path(__file__).parent / "bccd"
"""Twelve photographs with boxes in COCO layout: splits "train" (8) and "val" (4)."""

VARIABLE = "LGD_TEST_DATA"
FURTHER = ("bccd", "dice", "nuclei", "coco_mini", "nasty")


def further(*names: str) -> list[str]:
    """Those of these sets that are in the folder that LGD_TEST_DATA names; none where it is not set."""
    folder = _folder()
    return [] if folder is None else [name for name in names if (folder / name).is_dir()]


def folder_of(name: str) -> Path:
    """Where a set of `further` lies."""
    folder = _folder()
    assert folder is not None
    return folder / name


def _folder() -> Path | None:
    value = os.environ.get(VARIABLE)
    if not value:
        return None
    folder = Path(value).resolve()
    if not any((folder / name).is_dir() for name in FURTHER):
        raise ValueError(f"{VARIABLE} is {value}: a folder with some of {', '.join(FURTHER)} is expected")
    return folder
