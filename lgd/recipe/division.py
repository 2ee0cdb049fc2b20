"""One set in two: to train on and to validate on, the same on every machine and after every resume."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lgd.data.coco_writer import write_coco
from lgd.data.errors import DataError
from lgd.data.index import AnnotationIndex, Flags, Integers
from lgd.inspect.contents import Contents
from lgd.inspect.duplicates import find_duplicates
from lgd.words import counted

SHARE = 0.2
"""Of the images, to validate on."""
_SEED = 1


def divide(contents: Contents, groups: Integers) -> Flags:
    """Choose the images to validate on.

    Images of one group stay together. No class loses its last group to the validation, and a group that is
    larger than what the validation still lacks stays in training.

    Args:
        contents: of the set.
        groups: (I,) a number for each image, equal where pictures are the same.

    Returns:
        (I,) flags, a fifth of them set as far as the groups allow.

    Raises:
        DataError: there is nothing to validate on.
    """
    numbers, group_of = np.unique(groups, return_inverse=True)
    sizes = np.bincount(group_of)
    pairs = np.unique(np.stack([contents.labels, group_of[contents.image_of]]), axis=1)
    order = np.argsort(pairs[1], kind="stable")
    classes_of = np.split(pairs[0][order], np.searchsorted(pairs[1][order], np.arange(1, len(numbers))))
    left = np.bincount(pairs[0], minlength=len(contents.classes))  # groups that have the class, in training
    lacking = max(1, round(SHARE * contents.images))
    chosen = np.zeros(len(numbers), dtype=np.bool_)
    for group in np.random.default_rng(_SEED).permutation(len(numbers)).tolist():
        classes = classes_of[group]
        if sizes[group] <= lacking and (left[classes] > 1).all():
            chosen[group] = True
            left[classes] -= 1
            lacking -= sizes[group]
    flags: Flags = chosen[group_of]
    if not contents.per_image[flags].any():
        raise DataError(
            f"{contents.name}: its {counted(contents.images, 'image is', 'images are')} too few, or too "
            "much alike, to leave some of them to validate on; give a set to validate on"
        )
    return flags


def write_division(index: AnnotationIndex, contents: Contents, folder: Path) -> tuple[str, str]:
    """Divide a set and write both parts below `folder`, as train.json and val.json.

    Returns:
        The lines of the two.

    Raises:
        DataError: it cannot be divided.
        OSError: a file cannot be written.
    """
    found = find_duplicates([index])
    groups = found.looks if found.looks is not None else found.files
    validates = divide(contents, np.arange(len(index)) if groups is None else groups)
    lines = []
    for name, part in (("train", ~validates), ("val", validates)):
        path = folder / f"{name}.json"
        write_coco(index, np.flatnonzero(part), path)
        lines.append(f"coco:{path}:{index.image_dir}")
    return lines[0], lines[1]
