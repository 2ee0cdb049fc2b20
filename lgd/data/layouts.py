"""All splits of all formats that lie below a folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from lgd.data.coco_layouts import find_coco
from lgd.data.crowdhuman import find_crowdhuman
from lgd.data.splits import Split, in_order
from lgd.data.voc_layouts import find_voc
from lgd.data.yolo_layouts import find_yolo

__all__ = ["FINDERS", "Split", "find_splits"]

FINDERS: Mapping[str, Callable[[Path, str | None], Sequence[Split]]] = {
    "coco": find_coco,
    "yolo": find_yolo,
    "voc": find_voc,
    "crowdhuman": find_crowdhuman,
}
"""By format: from a folder or file, and the split that is looked for if one is, to all splits there."""


def find_splits(root: Path, kinds: Sequence[str] = tuple(FINDERS), wanted: str | None = None) -> list[Split]:
    """Find the splits of a data set, with the line to type for each.

    Args:
        root: a folder, a YOLO set's YAML file or a COCO-style JSON.
        kinds: the formats that are looked for.
        wanted: the split that is looked for: it is found even where its pictures are absent, or where it is
            the list of a single class, for which there is no other way.

    Returns:
        Those to train on first, then those to validate on, to test on, and all others by name; none where
        nothing is found.

    Raises:
        DataError: a folder or file cannot be read.
    """
    return in_order(split for kind in kinds for split in FINDERS[kind](root, wanted))
