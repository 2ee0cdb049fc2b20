"""Data sets in parts that validate in turn, so that every picture does once."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from lgd.data.catalog import open_dataset
from lgd.data.coco_writer import write_coco
from lgd.data.errors import DataError
from lgd.data.index import AnnotationIndex, Integers
from lgd.files import write_text_atomically
from lgd.inspect.duplicates import find_duplicates
from lgd.words import counted

_SEED = 1


def write_folds(lines: list[str], root: Path, number: int, folder: Path) -> list[tuple[str, str]]:
    """Divide the pictures of some sets into parts, and write for each the rest and the part itself.

    Pictures that look the same stay together. What is there already is left as it is.

    Args:
        lines: of sets with the same classes.
        root: the folder of the known data sets.
        number: of parts, at least 2.
        folder: where the JSONs are written.

    Returns:
        For each part the line to train on and the line to validate on.

    Raises:
        DataError: the sets have other classes than one another, or too few pictures.
        OSError: a file cannot be written.
    """
    index = _join([open_dataset(line, root) for line in lines], folder)
    found = find_duplicates([index])
    groups = found.looks if found.looks is not None else found.files
    parts = divide(np.arange(len(index)) if groups is None else groups, number)
    if min(np.bincount(parts, minlength=number)) == 0:
        raise DataError(
            f"{', '.join(lines)}: {counted(len(index), 'picture is', 'pictures are')} too few for "
            f"{number} folds"
        )
    result = []
    for part in range(number):
        written = []
        for name, chosen in (("train", parts != part), ("val", parts == part)):
            path = folder / f"fold{part}of{number}_{name}.json"
            if not path.exists():
                write_coco(index, np.flatnonzero(chosen), path)
            written.append(f"coco:{path}:{index.image_dir}")
        result.append((written[0], written[1]))
    return result


def divide(groups: Integers, number: int) -> Integers:
    """Deal out groups, in an order drawn once and for all, each to the part that has the fewest pictures.

    Args:
        groups: (I,) a number for each picture, equal for those that stay together.
        number: of parts.

    Returns:
        (I,) the part of each, in [0, number).
    """
    names, group_of, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    filled, part_of = np.zeros(number, dtype=np.int64), np.empty(len(names), dtype=np.int64)
    for group in np.random.default_rng(_SEED).permutation(len(names)):
        part_of[group] = filled.argmin()
        filled[part_of[group]] += sizes[group]
    return part_of[group_of]


def _join(indices: list[AnnotationIndex], folder: Path) -> AnnotationIndex:
    """Sets as one of one source: a JSON below `folder`, whose names begin at the pictures' common folder."""
    first = indices[0]
    for index in indices[1:]:
        if index.class_names != first.class_names:
            raise DataError(f"{index.name} has other classes than {first.name}; folds need the same")
    folders = [Path(index.image_dir).absolute() for index in indices]
    top = os.path.commonpath(folders)
    document: dict[str, list[Any]] = {"images": [], "annotations": []}
    for index, pictures in zip(indices, folders, strict=True):
        path = folder / "part.json"
        write_coco(index, np.arange(len(index)), path)
        part = json.loads(path.read_text())
        path.unlink()
        ids = {image["id"]: len(document["images"]) + k + 1 for k, image in enumerate(part["images"])}
        names = dict(zip(index.category_ids, first.category_ids, strict=True))
        for image in part["images"]:
            file_name = os.path.relpath(pictures / image["file_name"], top)
            document["images"].append({**image, "id": ids[image["id"]], "file_name": file_name})
        for annotation in part["annotations"]:
            own = {
                "id": len(document["annotations"]) + 1,
                "image_id": ids[annotation["image_id"]],
                "category_id": names[annotation["category_id"]],
            }
            document["annotations"].append({**annotation, **own})
    categories = [
        {"id": category, "name": name}
        for category, name in zip(first.category_ids, first.class_names, strict=True)
    ]
    joined = folder / "all.json"
    write_text_atomically(joined, json.dumps({**document, "categories": categories}))
    return open_dataset(f"coco:{joined}:{top}", folder)
