"""All splits of all formats that lie below a folder."""

from __future__ import annotations

from pathlib import Path

from lgd.data.coco_layouts import find_coco
from lgd.data.splits import Split, in_order

__all__ = ["Split", "find_splits"]


def find_splits(root: Path) -> list[Split]:
    """Find the splits of a data set, with the line to type for each.

    Args:
        root: a folder, a YOLO set's YAML file or a COCO-style JSON.

    Returns:
        Those to train on first, then those to validate on, to test on, and all others by name; none where
        nothing is found.

    Raises:
        DataError: a folder or file cannot be read.
    """
    return in_order(find_coco(root))
