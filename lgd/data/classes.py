"""Which classes the data sets of a run have together: compared by name, never by order or category id."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import yaml

from lgd.data.derived import OtherClasses, crowds_as_objects, lacks, with_classes
from lgd.data.errors import DataError
from lgd.data.index import AnnotationIndex
from lgd.data.limits import name_some

Classes = Mapping[str, Sequence[str]]
"""By the name of each class, in the order of the labels, the names in the files of what it is made of."""


@dataclass(frozen=True)
class ClassOptions:
    """What a user says of classes and crowds; see DATASETS.

    Attributes:
        wanted: the classes; none: those that the sets have.
        other: what becomes of objects of others.
        crowds: what COCO's iscrowd marks.
    """

    wanted: Classes = field(default_factory=dict)
    other: OtherClasses = "drop"
    crowds: Literal["crowd", "object"] = "crowd"


def agree(
    training: Sequence[AnnotationIndex],
    tests: Sequence[AnnotationIndex],
    options: ClassOptions,
    trained: Sequence[str] = (),
) -> tuple[list[AnnotationIndex], list[AnnotationIndex]]:
    """Give all data sets of a run the same classes.

    Args:
        training: the training sets; none for an evaluation alone.
        tests: the test sets.
        options: what the user says.
        trained: for an evaluation alone, the names of the classes of the weights, where these are known.

    Returns:
        Training and test sets with the same classes in the same order, each with category ids of its own.

    Raises:
        DataError: see `choose_classes`.
    """
    if options.crowds == "object":
        training, tests = ([crowds_as_objects(index) for index in sets] for sets in (training, tests))
    classes = choose_classes(training, tests, options.wanted, trained)
    ids: dict[str, int] = {}
    for index in (*training, *tests):
        ids = dict(zip(index.class_names, index.category_ids, strict=True)) | ids
    first, second = (
        [with_classes(index, classes, other=options.other, ids=ids) for index in sets]
        for sets in (training, tests)
    )
    return first, second


def choose_classes(
    training: Sequence[AnnotationIndex],
    tests: Sequence[AnnotationIndex],
    wanted: Classes,
    trained: Sequence[str] = (),
) -> Classes:
    """Choose the classes of a run.

    They are those that the user wants; else those of the training sets in the order of the first, which must
    then all list the same ones. For an evaluation alone they are those of the weights, or those of all test
    sets where the weights have others.

    Args:
        training: the training sets; none for an evaluation alone.
        tests: the test sets.
        wanted: what the user says, if anything.
        trained: names of the classes of the weights, where these are known.

    Raises:
        DataError: a wanted class is in no set; a training set does not list a class that another has; a test
            set has objects of a class that no training set has.
    """
    if wanted:
        if training:
            _refuse_unknown(wanted, (*training, *tests))
        return wanted
    if not training:
        names = _union(tests)
        return _as_they_are(trained if {*names} <= {*trained} else names)
    names = _union(training)
    for index in training:
        lacking = [name for name in names if lacks(index, [name])]
        if lacking:
            raise DataError(_say_lacking(index, lacking, training))
    for index in tests:
        _refuse_untrained(index, names)
    return _as_they_are(names)


def _as_they_are(names: Sequence[str]) -> Classes:
    return {name: (name,) for name in names}


def _union(indices: Sequence[AnnotationIndex]) -> list[str]:
    return list(dict.fromkeys(name for index in indices for name in index.class_names))


def _refuse_unknown(wanted: Classes, indices: Sequence[AnnotationIndex]) -> None:
    left_out = [name for index in indices for name in index.metadata.get("left_out", {})]
    known = list(dict.fromkeys([*_union(indices), *left_out]))
    for name in (name for merged in wanted.values() for name in merged if name not in known):
        alike = {each.casefold(): each for each in reversed(known)}
        close = difflib.get_close_matches(name.casefold(), list(alike), n=1)
        hint = f"did you mean {alike[close[0]]}? " if close else ""
        raise DataError(
            f"DATASETS.CLASSES names {name}, which no data set has: {hint}They have "
            f"{name_some(known, at_most=20)}"
        )


def _say_lacking(index: AnnotationIndex, lacking: Sequence[str], training: Sequence[AnnotationIndex]) -> str:
    """What a training set lacks that another has, and the ways out."""
    other = next(each for each in training if lacking[0] in each.class_names)
    names = _union(training)
    shared = [name for name in names if not any(lacks(each, [name]) for each in training)]
    train_on_shared = f", and '{_write(shared)}' trains on what all have" if shared else ""
    return (
        f"{index.name} does not list {_say_classes(lacking)}, which {other.name} has: any such object in its "
        f"pictures would be trained on as background. List it in the categories of {index.json_path} if "
        f"there are none; else choose by DATASETS.CLASSES: '{_write(names)}' takes the sets as they "
        f"are{train_on_shared}; names for the same thing are merged as '{{NAME: [ONE, OTHER]}}'"
    )


def _refuse_untrained(index: AnnotationIndex, names: Sequence[str]) -> None:
    """Refuse objects of classes that are not trained; categories without objects are left out of the set."""
    counts = np.bincount(index.columns["labels"], minlength=len(index.class_names))
    others = [name for k, name in enumerate(index.class_names) if counts[k] and name not in names]
    if others:
        raise DataError(
            f"{index.name} has objects of {_say_classes(others)}, which no training set lists. Choose by "
            f"DATASETS.CLASSES: '{_write(names)}' evaluates what is trained (the others are dropped, or "
            "ignored: DATASETS.OTHER_CLASSES); names for the same thing are merged as '{NAME: [ONE, OTHER]}'"
        )


def _say_classes(names: Sequence[str]) -> str:
    return f"{'the class' if len(names) == 1 else f'{len(names)} classes:'} {name_some(names)}"


def _write(names: Sequence[str]) -> str:
    """A list of names as it can be typed."""
    return str(yaml.safe_dump(list(names), default_flow_style=True, width=10**9, allow_unicode=True)).strip()
