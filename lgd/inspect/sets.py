"""Which data sets a word on the command line means: one, or all splits of a folder."""

from __future__ import annotations

from pathlib import Path

from lgd.data.errors import DataError
from lgd.data.layouts import Split, find_splits
from lgd.data.splits import in_order
from lgd.files import at_home


def find_folder(word: str) -> Path | None:
    """Return the folder that a word is the path of; None where it is none."""
    try:
        folder = at_home(word)
        return folder if word and folder.is_dir() else None
    except (OSError, ValueError):
        return None


def splits_of(folder: Path) -> list[Split]:
    """Return all splits of a folder, those to train on first.

    Those to train and to validate on are there even where their pictures are absent: to open such a one says
    what is not there, and without it another split would be taken for it.

    Raises:
        DataError: there are none.
    """
    found = [split for wanted in ("train", "val") for split in find_splits(folder, wanted=wanted)]
    splits = in_order({split.spec: split for split in found}.values())
    if not splits:
        raise DataError(
            f"{folder}: no annotations of a known format are there or a folder below; write where they are, "
            "as coco:FILE.json:IMAGES, yolo:FILE.yaml:SPLIT or voc:ROOT:SPLIT"
        )
    return splits


def lines_of(word: str) -> list[str]:
    """Return the lines, as in DATASETS.TRAIN, that a folder or a line stands for.

    Raises:
        DataError: a folder holds no data set.
    """
    folder = find_folder(word)
    return [word] if folder is None else [split.spec for split in splits_of(folder)]
