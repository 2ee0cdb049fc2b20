"""Data sets made from others: with these classes in this order, without unused ones, with crowds as objects.

Legend: I images, A annotations, K classes.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from lgd.data.annotations import offsets
from lgd.data.cache import Columns, derived_columns
from lgd.data.columns import Array
from lgd.data.index import AnnotationIndex, Flags, Integers
from lgd.data.limits import name_some
from lgd.data.remarks import Remark, to_metadata
from lgd.data.schema import PER_ANNOTATION
from lgd.words import counted

logger = logging.getLogger(__name__)

OtherClasses = Literal["drop", "ignore"]
"""What becomes of objects whose class is not chosen."""


def tidy(index: AnnotationIndex) -> AnnotationIndex:
    """Leave out categories that are no classes: unused ones that group others, or are the background.

    That is Roboflow's first row, which the others name as their supercategory, and `background`, each only
    where no annotation is of it. Names and ids stay known as `metadata["left_out"]`: whoever chooses such a
    class by name has it, without objects. The index itself comes back where there is nothing to leave out.
    """
    supercategories = index.metadata.get("supercategories", [""] * len(index.class_names))
    objects = np.bincount(index.columns["labels"], minlength=len(index.class_names))
    groups = [
        name for k, name in enumerate(index.class_names)
        if name in (*supercategories[:k], *supercategories[k + 1 :])
    ]  # fmt: skip
    unused = [name for name, number in zip(index.class_names, objects, strict=True) if not number]
    left_out = [name for name in unused if name in groups or _is_background(name)]
    kept = [name for name in index.class_names if name not in left_out]
    if not left_out or not kept:
        return index
    text = (
        f"left out {len(left_out)} of {len(index.class_names)} categories, which no annotation is of: "
        f"{name_some([_say_why(name, name in groups) for name in left_out])}"
    )
    remark = Remark("categories_left_out", len(left_out), text)
    labels = np.array([kept.index(name) if name in kept else -1 for name in index.class_names])
    ids = dict(zip(index.class_names, index.category_ids, strict=True))

    def build() -> Columns:
        columns = {**index.columns, "labels": labels[index.columns["labels"]]}
        about = {"class_names": kept, "category_ids": [ids[name] for name in kept]}
        return columns, {**about, "left_out": {name: ids[name] for name in left_out}}

    return _derive(index, "tidy", left_out, build, [remark])


def crowds_as_objects(index: AnnotationIndex) -> AnnotationIndex:
    """Take what COCO's iscrowd marks for objects like others; the index itself where nothing is marked.

    Regions to ignore of CrowdHuman's sets are not objects, and stay.
    """
    number = int(index.columns["crowd"].sum())
    if index.kind != "coco" or not number:
        return index

    def build() -> Columns:
        return _count({**index.columns, "crowd": np.zeros_like(index.columns["crowd"])}), {}

    text = (
        f"{counted(number, 'crowd is taken for an object', 'crowds are taken for objects')}, as "
        "DATASETS.CROWDS object says"
    )
    return _derive(index, "objects", None, build, [Remark("crowds_as_objects", number, text)])


def with_classes(
    index: AnnotationIndex,
    classes: Mapping[str, Sequence[str]],
    *,
    other: OtherClasses = "drop",
    ids: Mapping[str, int] | None = None,
) -> AnnotationIndex:
    """Give a data set these classes in this order, by name.

    Each class keeps the category id that the set has for it, and so do predictions; of merged classes that is
    the id of the first of them that the set has. A class that the set lacks has no objects there; its id is
    the one in `ids` where the set does not use it for another class, else the first unused one from 1 on.

    Args:
        index: the data set.
        classes: by the name of each class, in the order of the labels, the names of what it is made of.
        other: leave objects of other classes out, or make them crowds of every class (label K), so that no
            detection on them is wrong.
        ids: preferred category ids of classes that the set lacks.

    Returns:
        The set with these classes; the index itself where it has them so already.
    """
    label_of = {name: label for label, merged in enumerate(classes.values()) for name in merged}
    labels = np.array([label_of.get(name, -1) for name in index.class_names], dtype=np.int64)
    if tuple(classes) == index.class_names and np.array_equal(labels, np.arange(len(labels))):
        return index
    category_ids = _choose_ids(index, classes, ids or {})
    is_other = labels[index.columns["labels"]] < 0

    def build() -> Columns:
        columns = {
            **index.columns,
            "labels": np.where(is_other, len(classes), labels[index.columns["labels"]]),
        }
        if other == "ignore":
            columns = _count({**columns, "crowd": columns["crowd"] | is_other})
        else:
            columns = _select(columns, ~is_other)
        return columns, {"class_names": list(classes), "category_ids": category_ids, "left_out": {}}

    key = [list(map(list, classes.items())), other, category_ids]
    return _derive(index, "classes", key, build, _remarks_on_classes(index, classes, is_other, other))


def lacks(index: AnnotationIndex, merged: Sequence[str]) -> bool:
    """Whether the set's file lists none of these classes."""
    return not {*index.class_names, *index.metadata.get("left_out", {})} & {*merged}


def _is_background(name: str) -> bool:
    return name.strip("_ ").casefold() == "background"


def _say_why(name: str, is_group: bool) -> str:
    return f"{name} (others name it as their supercategory)" if is_group else name


def _choose_ids(
    index: AnnotationIndex, classes: Mapping[str, Sequence[str]], preferred: Mapping[str, int]
) -> list[int]:
    known = dict(zip(index.class_names, index.category_ids, strict=True))
    known |= index.metadata.get("left_out", {})
    taken, chosen = {*known.values()}, []
    for name, merged in classes.items():
        candidates = itertools.chain([preferred[name]] if name in preferred else [], itertools.count(1))
        own = next((known[each] for each in merged if each in known), None)
        chosen.append(next(n for n in candidates if n not in taken) if own is None else own)
        taken.add(chosen[-1])
    return chosen


def _remarks_on_classes(
    index: AnnotationIndex, classes: Mapping[str, Sequence[str]], is_other: Flags, other: OtherClasses
) -> list[Remark]:
    remarks = []
    lacking = [name for name, merged in classes.items() if lacks(index, merged)]
    if lacking and index.has_annotations:
        text = (
            f"its categories lack {name_some(lacking)}, which the run has: there is no AP of it here, and "
            "where it is in a picture it counts as background; list it in the categories if there is none"
        )
        remarks.append(Remark("classes_lacking", len(lacking), text))
    number = int(is_other.sum())
    others = [name for name in index.class_names if not any(name in merged for merged in classes.values())]
    if others and not number:
        text = f"its categories {name_some(others)} are left out: they have no objects and are no class here"
        remarks.append(Remark("categories_left_out", len(others), text))
    if number:
        counts = np.bincount(index.columns["labels"][is_other], minlength=len(index.class_names))
        named = [
            f"{index.class_names[k]} ({counts[k]})" for k in np.argsort(-counts, kind="stable") if counts[k]
        ]
        what = "left out" if other == "drop" else "regions to ignore in evaluations"
        text = f"{counted(number, 'object')} of other classes, {what}: {name_some(named)}"
        remarks.append(Remark(f"objects_of_other_classes_{other}", number, text))
    return remarks


def _derive(
    index: AnnotationIndex, what: str, key: Any, build: Callable[[], Columns], remarks: Sequence[Remark]
) -> AnnotationIndex:
    """The index of columns that `build` makes from those of `index`, with what of the metadata is new."""
    added = to_metadata(remarks)
    facts = json.dumps([index.content_hash, what, key, added])
    content_hash = hashlib.sha256(facts.encode()).hexdigest()

    def build_all() -> Columns:
        columns, about = build()
        kept = {name: said for name, said in index.metadata.items() if name != "supercategories"}
        first, *others = kept["remarks"]
        return columns, {
            **kept, **about, "content_hash": content_hash, "remarks": [[*first, *added], *others]
        }  # fmt: skip

    path = derived_columns(index.json_path, what, content_hash, build_all)
    for remark in remarks:
        logger.warning("%s: %s", index.json_path, remark.text)
    return index.on_columns(path)


def _image_of(columns: Mapping[str, Array]) -> Integers:
    """The image of each annotation: (A,) in [0, I)."""
    return np.repeat(np.arange(len(columns["image_ids"])), np.diff(columns["annotation_offsets"]))


def _count(columns: Mapping[str, Array]) -> dict[str, Array]:
    """The columns with the objects of each image counted anew."""
    image = _image_of(columns)[columns["usable"] & ~columns["crowd"]]
    return {**columns, "counts": np.bincount(image, minlength=len(columns["image_ids"])).astype(np.int64)}


def _select(columns: Mapping[str, Array], keep: Flags) -> dict[str, Array]:
    """The columns with those annotations alone that (A,) flags keep; all images stay."""
    points, polygons, runs = (
        np.diff(columns[f"{name}_offsets"]) for name in ("point", "polygon", "run")
    )  # fmt: skip
    keep_polygon = np.repeat(keep, polygons)
    selected = {
        **columns,
        **{name: columns[name][keep] for name in PER_ANNOTATION},
        "annotation_offsets": offsets(
            np.bincount(_image_of(columns)[keep], minlength=len(columns["image_ids"]))
        ),
        "polygon_offsets": offsets(polygons[keep]),
        "point_offsets": offsets(points[keep_polygon]),
        "points": columns["points"][np.repeat(keep_polygon, points)],
        "run_offsets": offsets(runs[keep]),
        "runs": columns["runs"][np.repeat(keep, runs)],
    }
    return _count(selected)
