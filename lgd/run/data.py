"""The data sets of a run, and whether they are still those that it began with."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lgd.config.keys import with_values
from lgd.config.schema import Config
from lgd.data.catalog import open_dataset
from lgd.data.classes import ClassOptions, agree
from lgd.data.concatenation import concatenate
from lgd.data.errors import DataError
from lgd.data.index import AnnotationIndex
from lgd.engine.checkpoint import Checkpoint, CheckpointError
from lgd.ranks import process_group
from lgd.run.output import shorten

logger = logging.getLogger(__name__)

Record = dict[str, Any]
"""What a checkpoint keeps of a data set: name, images, objects, class_names, category_ids, and content, which
has a hash of each part, made of these columns."""


@dataclass(frozen=True)
class RunData:
    """The data sets of a run.

    Attributes:
        opened: each by itself with the classes of the run, by name.
        parts: names of the training sets; none for an evaluation alone.
        train: these as one; None for an evaluation alone.
        tests: the test sets by name.
    """

    opened: Mapping[str, AnnotationIndex]
    parts: Sequence[str]
    train: AnnotationIndex | None
    tests: Mapping[str, AnnotationIndex]

    @property
    def sets(self) -> list[AnnotationIndex]:
        """What is trained on, as one, and the test sets."""
        return [*([] if self.train is None else [self.train]), *self.tests.values()]

    def describe(self) -> dict[str, list[Record]]:
        """What a checkpoint keeps of them, by "train" and "test"; every rank calls it, rank 0 reads."""
        mine = {}
        if process_group.is_main():
            by_name = {name: _describe(index) for name, index in self.opened.items()}
            uses = {"train": self.parts, "test": self.tests}
            mine = {use: [by_name[name] for name in names] for use, names in uses.items()}
        records: dict[str, list[Record]] = process_group.broadcast_object(mine)
        return records


@dataclass(frozen=True)
class Origin:
    """What the weights of a run come from.

    Attributes:
        records: of the data sets as they are, as from `RunData.describe`.
        changes: {"step": where a resume accepted other data, "changes": lines}, since the run began.
        news: the lines of this resume.
        keeps_best: whether the best AP so far was measured on the first test set as it is.
    """

    records: Mapping[str, Sequence[Record]]
    changes: Sequence[Mapping[str, Any]] = ()
    news: Sequence[str] = ()
    keeps_best: bool = True

    def about(self) -> dict[str, Any]:
        """What a file of weights says of it."""
        return {"data": dict(self.records), "data_changes": list(self.changes)}


def open_data(cfg: Config, *, with_training: bool, trained: Sequence[str] = ()) -> RunData:
    """Open the sets of DATASETS.TRAIN and DATASETS.TEST, rank 0 first, with the classes that they share.

    Args:
        cfg: names the sets and the classes.
        with_training: whether the training sets are opened too.
        trained: if not, the names of the classes of the weights that are evaluated, where these are known.

    Raises:
        DataError: one cannot be opened, or their classes do not fit together.
    """
    root = Path(cfg.datasets.root)
    if with_training and not cfg.datasets.train:
        raise DataError("no data set is given to train on (DATASETS.TRAIN)")
    parts = cfg.datasets.train if with_training else ()
    as_they_are = {
        name: process_group.on_main_first(partial(open_dataset, name, root))
        for name in (*parts, *cfg.datasets.test)
    }
    training, tests = ([as_they_are[name] for name in names] for names in (parts, cfg.datasets.test))
    together = partial(agree, training, tests, _class_options(cfg), trained)
    training, tests = process_group.on_main_first(together)
    by_name = dict(zip(cfg.datasets.test, tests, strict=True))
    opened = dict(zip(parts, training, strict=True)) | by_name
    if not with_training:
        return RunData(opened, (), None, by_name)
    train = training[0] if len(parts) == 1 else process_group.on_main_first(partial(concatenate, training))
    return RunData(opened, parts, train, by_name)


def open_training_data(cfg: Config) -> AnnotationIndex:
    """Open the sets of DATASETS.TRAIN as one, as `open_data` does."""
    train = open_data(with_values(cfg, {"DATASETS.TEST": ()}), with_training=True).train
    assert train is not None
    return train


def _class_options(cfg: Config) -> ClassOptions:
    data = cfg.datasets
    wanted = data.classes if isinstance(data.classes, dict) else {name: (name,) for name in data.classes}
    return ClassOptions(wanted, data.other_classes, data.crowds)


def _describe(index: AnnotationIndex) -> Record:
    return {
        "name": index.name,
        "images": len(index),
        "objects": len(index.columns["labels"]),
        "class_names": list(index.class_names),
        "category_ids": list(index.category_ids),
        "columns": sorted(index.columns),
        "content": index.hash_parts(),
    }


def trace_data(data: RunData, checkpoint: Checkpoint | None, *, accept: bool) -> Origin:
    """Hold the data against what the checkpoint's run began with; every rank calls it.

    The training sets must be the same ones in the same order, wherever they lie; of the test sets the first,
    by which the best model is chosen, and those that are called as before.

    Args:
        data: as it is now.
        checkpoint: to go on from; None begins anew.
        accept: go on with other data, of the same classes.

    Raises:
        CheckpointError: other data, and that is not accepted; or other classes.
    """
    records = data.describe()
    if checkpoint is None:
        return Origin(records)
    before, earlier = checkpoint.state.get("data"), checkpoint.state.get("data_changes", [])
    if before is None:
        logger.warning("%s does not say what it was trained on: the data is not compared", checkpoint.path)
        return Origin(records, earlier)
    tests = _pair_tests(before["test"], records["test"])
    pairs = (*_pair_trains(before["train"], records["train"]), *tests)
    changes = [line for old, new in pairs for line in _compare(old, new)]
    if _class_names(before) != _class_names(records):
        raise CheckpointError(
            f"{checkpoint.path} was trained on other classes: {'; '.join(changes)}. A run keeps its classes: "
            f"choose another OUTPUT_DIR, and start there from MODEL.WEIGHTS {checkpoint.path}; or choose the "
            "same classes by name (DATASETS.CLASSES)"
        )
    if not changes:
        return Origin(records, earlier)
    if not accept:
        raise CheckpointError(
            f"{checkpoint.path} was trained on other data: {'; '.join(changes)}. Put the data back, choose "
            "another OUTPUT_DIR, or go on with what there is now (TRAIN.ACCEPT_CHANGED_DATA True)"
        )
    keeps_best = not any(_compare(old, new) for old, new in tests[:1])
    accepted = {"step": checkpoint.step, "changes": changes}
    return Origin(records, [*earlier, accepted], [f"other data: {line}" for line in changes], keeps_best)


def _class_names(records: Mapping[str, Sequence[Record]]) -> list[str]:
    names: list[str] = records["train"][0]["class_names"]
    return names


def _pair_trains(
    before: Sequence[Record], now: Sequence[Record]
) -> list[tuple[Record | None, Record | None]]:
    most = max(len(before), len(now))
    padded = [[*records, *[None] * (most - len(records))] for records in (before, now)]
    return list(zip(*padded, strict=True))


def _pair_tests(before: Sequence[Record], now: Sequence[Record]) -> list[tuple[Record | None, Record | None]]:
    """The first with the first, the others by name; one that is new or left out is a changed setting."""
    if not before or not now:
        return []
    named = {record["name"]: record for record in now[1:]}
    return [
        (before[0], now[0]),
        *((old, named[old["name"]]) for old in before[1:] if old["name"] in named),
    ]


def _compare(old: Record | None, new: Record | None) -> list[str]:
    """What differs between two records of a set, in one line; none where they are equal in content."""
    if old is None or new is None:
        record = old or new
        assert record is not None
        return [f"{record['name']} is {'new' if old is None else 'gone'}"]
    changes = [
        f"{what} {old[what]} -> {new[what]}" for what in ("images", "objects") if old[what] != new[what]
    ]
    changes += _compare_classes(old, new)
    if not changes and old["columns"] == new["columns"]:  # else another version has hashed others
        parts = [name for name in new["content"] if new["content"][name] != old["content"].get(name)]
        changes = [f"the same counts, other content ({', '.join(parts)}, or their order)"] if parts else []
    name = new["name"] if old["name"] == new["name"] else f"{new['name']} (was {old['name']})"
    return [f"{name}: {', '.join(changes)}"] if changes else []


def _compare_classes(old: Record, new: Record) -> list[str]:
    names = old["class_names"], new["class_names"]
    if names[0] == names[1]:
        same_ids = old["category_ids"] == new["category_ids"]
        return [] if same_ids else [f"category ids {shorten(list(map(str, old['category_ids'])))} -> "
                                    f"{shorten(list(map(str, new['category_ids'])))}"]  # fmt: skip
    if sorted(names[0]) == sorted(names[1]):
        return [f"classes in another order: {shorten(names[0])} -> {shorten(names[1])}"]
    gone, added = ([name for name in one if name not in other] for one, other in (names, names[::-1]))
    said = [f"{word} {shorten(some)}" for word, some in (("without", gone), ("with", added)) if some]
    return [f"classes {len(names[0])} -> {len(names[1])} ({', '.join(said)})"]
