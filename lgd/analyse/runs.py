"""Take: what RUN means on the command line, a model or a file of predictions, as detections on a data set."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from lgd.config.keys import with_values
from lgd.config.load import load_config
from lgd.data.catalog import open_dataset
from lgd.data.errors import DataError
from lgd.data.index import AnnotationIndex, Integers
from lgd.data.limits import name_some, parse_json, plain, read_text, shown
from lgd.evaluation.predictions import Predictions
from lgd.files import at_home
from lgd.inference.evaluate import detect_on
from lgd.inference.model import TrainedModel
from lgd.inspect.sets import lines_of
from lgd.run.data import open_data
from lgd.run.output import OutputFolder
from lgd.run.trained import load
from lgd.words import counted

logger = logging.getLogger(__name__)

_LEVELS = 4
"""Folders above a file in which the settings of its run are looked for."""


@dataclass(frozen=True)
class SavedPredictions:
    """A file of predictions.

    Attributes:
        path: the file.
        entries: the detections, checked: image_id, category_id, bbox, score.
        image_names: by id, where the file has them.
        class_names: by id, where the file has them.
    """

    path: Path
    entries: Sequence[Mapping[str, Any]]
    image_names: Mapping[Any, str] | None
    class_names: Mapping[Any, str] | None


Source = TrainedModel | SavedPredictions


def take(word: str, device: str | None) -> Source:
    """Load the model or read the file that is meant.

    Raises:
        DataError: a file that holds no predictions.
        WeightsError: no trained model; see `lgd.load`.
        ConfigError: see `lgd.load`.
    """
    path = at_home(word)
    return read_saved(path) if path.suffix.lower() == ".json" else load(word, device)


def find_run(word: str) -> Path | None:
    """The folder of the run that a folder or a file is of; None where it is of none."""
    path = at_home(word).absolute()
    folders = [path, *path.parents][:_LEVELS]
    return next((folder for folder in folders if _is_run(folder)), None)


def _is_run(folder: Path) -> bool:
    output = OutputFolder(folder)
    signs = (output.best_model, output.final_model, output.checkpoints, folder / "inference")
    return output.config.is_file() and any(path.exists() for path in signs)


def name_runs(words: Sequence[str]) -> list[str]:
    """Names for runs, short where they differ."""
    names = [_name(at_home(word).absolute(), find_run(word)) for word in words]
    return names if len(set(names)) == len(names) else list(words)


def _name(path: Path, run: Path | None) -> str:
    if run is None:
        return f"{path.parent.name}/{path.name}"
    return run.name if path == run else f"{run.name}/{path.name}"


def open_set(word: str, source: Source, data: str | None, root: Path | None) -> AnnotationIndex:
    """Open the data set: the one that is asked for, else the first on which the run was evaluated.

    Args:
        word: RUN as it was typed.
        source: what that means.
        data: as in DATASETS.TEST; None for the run's own.
        root: as DATASETS.ROOT; None for the run's own.

    Raises:
        DataError: there is none, several are meant, or it cannot be opened.
    """
    if data is not None:
        lines = lines_of(data)
        if len(lines) > 1:
            raise DataError(f"--data {data} holds {len(lines)} sets; give one: {name_some(lines)}")
        return open_dataset(lines[0], root or Path("datasets"))
    run = find_run(word)
    if run is None:
        raise DataError(f"{word} lies in no run's folder, so say which data to hold it against: --data")
    cfg = load_config(run / "config.yaml")
    if not cfg.datasets.test:
        raise DataError(f"{run} was evaluated on no data set (DATASETS.TEST); say which: --data")
    name = _choose_set(word, run, cfg.datasets.test)
    changes: dict[str, Any] = {"DATASETS.TEST": (name,)}
    if root is not None:
        changes["DATASETS.ROOT"] = str(root)
    trained = source.class_names if isinstance(source, TrainedModel) else ()
    return open_data(with_values(cfg, changes), with_training=False, trained=trained).tests[name]


def _choose_set(word: str, run: Path, names: Sequence[str]) -> str:
    """Of a run's test sets the one that a file of its predictions is of, else the first."""
    folder = at_home(word).absolute().parent
    output = OutputFolder(run)
    for name in names:
        if output.predictions(name, "student").parent == folder:
            return name
    if len(names) > 1:
        logger.info("%s is the first of %d test sets; --data takes another", names[0], len(names))
    return names[0]


def detections_of(
    source: Source, index: AnnotationIndex, *, batch: int | None
) -> tuple[Predictions, list[str]]:
    """What a model or a file says was found on a data set.

    Returns:
        The detections, with the ids of `index`; and lines about what is doubtful.

    Raises:
        DataError: its classes or pictures are others.
    """
    if isinstance(source, SavedPredictions):
        return place_saved(source, index)
    return detect_on(source, index, with_masks=False, batch=batch), []


def read_saved(path: Path) -> SavedPredictions:
    """Read a list in COCO's results format, or the COCO file that `lgd predict --save coco` writes.

    Raises:
        DataError: it is neither.
    """
    content = parse_json_file(path)
    images = classes = None
    entries = content
    if isinstance(content, dict):
        entries = content.get("annotations")
        images, classes = _names(content, "images", "file_name"), _names(content, "categories", "name")
    if not isinstance(entries, list):
        raise DataError(f"{path}: no predictions: neither a list of them nor a COCO file with annotations")
    for number, entry in enumerate(entries):
        if problem := _problem(entry):
            raise DataError(f"{path}: entry {number} {problem}; give what lgd predict --save coco writes")
    return SavedPredictions(path, entries, images, classes)


def parse_json_file(path: Path) -> Any:
    """Parse a file of JSON; raises DataError where that is not possible."""
    try:
        return parse_json(read_text(path))
    except ValueError as error:
        message = str(error)
        raise DataError(message if str(path) in message else f"{path}: {message}") from error


def _names(content: Mapping[str, Any], key: str, name: str) -> dict[Any, str] | None:
    entries = content.get(key)
    if not isinstance(entries, list) or not all(isinstance(each, dict) for each in entries):
        return None
    pairs = [(each.get("id"), each.get(name)) for each in entries]
    if not all(isinstance(number, int | str) and isinstance(text, str) for number, text in pairs):
        return None
    return {number: str(text) for number, text in pairs}


def _problem(entry: Any) -> str | None:
    """What is wrong with a detection; None for nothing."""
    if not isinstance(entry, dict):
        return f"is {shown(entry)}, no detection"
    for key in ("image_id", "category_id"):
        if not isinstance(entry.get(key), int | str):
            return f"has no {key}"
    box, score = entry.get("bbox"), entry.get("score")
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        return f"has a bbox of {shown(box)}"
    if score is None:
        return "has no score, as labels have none"
    if not _is_number(score) or not 0 <= score <= 1:
        return f"has a score of {shown(score)}"
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def place_saved(saved: SavedPredictions, index: AnnotationIndex) -> tuple[Predictions, list[str]]:
    """Give saved detections the ids of a data set: by names where the file has some, else by its ids.

    Returns:
        The detections; and lines about what is doubtful.

    Raises:
        DataError: a picture or a class is not in the data set.
    """
    images = _place_images(saved, index)
    classes = _place_classes(saved, index)
    found = Predictions(
        _place_ids(saved, "image_id", images, "picture", index),
        _place_ids(saved, "category_id", classes, "class", index),
        np.array([entry["bbox"] for entry in saved.entries], dtype=np.float64).reshape(-1, 4),
        np.array([entry["score"] for entry in saved.entries], dtype=np.float64),
    )
    doubts = []
    if saved.image_names is not None and (absent := len(index) - len(set(images.values()))):
        doubts.append(
            f"{saved.path} lacks {absent} of the {counted(len(index), 'picture')}: as if nothing was found"
        )
    if len(found) and found.scores.min() >= 0.1:
        doubts.append(
            f"{saved.path} has no scores below {found.scores.min():.2f}: AP is less than with all "
            "(lgd predict --score 0)"
        )
    return found.sort_by_image(), doubts


def _place_ids(
    saved: SavedPredictions, key: str, known: Mapping[Any, int], kind: str, index: AnnotationIndex
) -> Integers:
    """The ids of all detections as the data set has them."""
    ids = [entry[key] for entry in saved.entries]
    unknown = list(dict.fromkeys(each for each in ids if each not in known))
    if unknown:
        raise DataError(
            f"{saved.path} names {counted(len(unknown), f'{kind} id')} that {index.name} does not have "
            f"({name_some(unknown, shown)}); give the data that it was made from: --data"
        )
    return np.array([known[each] for each in ids], dtype=np.int64)


def _place_images(saved: SavedPredictions, index: AnnotationIndex) -> dict[Any, int]:
    """Ids of the images of `index` by those of the file."""
    if saved.image_names is None:
        written = index.written_ids()[0]
        return {written.get(number, number): number for number in index.image_ids.tolist()}
    by_name = dict(zip(index.file_names(), index.image_ids.tolist(), strict=True))
    by_bare_name: dict[str, list[int]] = {}
    for name, number in by_name.items():
        by_bare_name.setdefault(PurePosixPath(name).name, []).append(number)
    places, unknown = {}, []
    for number, name in saved.image_names.items():
        alike = by_bare_name.get(PurePosixPath(name).name, [])
        place = by_name.get(name, alike[0] if len(alike) == 1 else None)
        if place is None:
            unknown.append(name)
        else:
            places[number] = place
    if unknown:
        raise DataError(
            f"{saved.path}: {len(unknown)} of its "
            f"{counted(len(saved.image_names), 'picture is', 'pictures are')} not in {index.name} "
            f"({name_some(unknown, plain)}); give the data that it was made from: --data"
        )
    return places


def _place_classes(saved: SavedPredictions, index: AnnotationIndex) -> dict[Any, int]:
    """Category ids of `index` by those of the file."""
    if saved.class_names is None:
        written = index.written_ids()[1]
        return {written.get(number, number): number for number in index.category_ids}
    by_name = dict(zip(index.class_names, index.category_ids, strict=True))
    names = list(saved.class_names.values())
    unknown = [name for name in names if name not in by_name]
    if unknown or len(set(names)) < len(by_name):
        raise DataError(
            f"{saved.path} has other classes ({name_some(names, plain)}) than {index.name} "
            f"({name_some(list(by_name), plain)})"
        )
    return {number: by_name[name] for number, name in saved.class_names.items()}
