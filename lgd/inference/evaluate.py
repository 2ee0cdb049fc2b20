"""A trained model on a data set with labels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lgd.data.catalog import open_dataset
from lgd.data.errors import DataError
from lgd.data.index import AnnotationIndex
from lgd.data.limits import name_some
from lgd.data.loader import test_loader
from lgd.evaluation.coco import Backend, Metrics, require_backend
from lgd.evaluation.predictions import Predictions
from lgd.evaluation.score import score
from lgd.inference.collect import collect_predictions
from lgd.inference.model import TrainedModel
from lgd.inference.test_sets import follow_batches
from lgd.weights.classes import Classes
from lgd.words import say_type


def evaluate(
    model: TrainedModel,
    dataset: str | AnnotationIndex,
    *,
    root: str | Path | None = None,
    workers: int = 0,
    backend: Backend = "hotcoco",
) -> dict[str, Metrics | None]:
    """Measure a model as `lgd train --eval-only` does.

    Args:
        model: from `lgd.load`.
        dataset: as in DATASETS.TEST: `coco:FOLDER:SPLIT` and the like.
        root: the folder of the data sets that are known by name; None for `datasets`.
        workers: processes that read the pictures; 0 reads them in this one.
        backend: what counts the matches.

    Returns:
        Metrics in percent, as results.json has them: "bbox" and, of a model with masks, "segm".

    Raises:
        DataError: the data cannot be read, or has other classes than the model.
        ValueError: `root` beside an index, which says itself where its pictures are; something else in the
            place of model or data set.
        ConfigError: there is no such `backend`, or it is not installed.
    """
    if not isinstance(model, TrainedModel):
        raise ValueError(f"{say_type(model)} is no model; give what lgd.load returns")
    if not isinstance(dataset, str | AnnotationIndex):
        raise ValueError(f"{say_type(dataset)} is no data set; give a line as coco:FOLDER:SPLIT")
    if not isinstance(dataset, str) and root is not None:
        raise ValueError(f"the root {root} is for a data set by its line, and this one is open already")
    require_backend(backend)
    index = open_dataset(dataset, Path(root or "datasets")) if isinstance(dataset, str) else dataset
    found = detect_on(model, index, with_masks=model.with_masks, workers=workers)
    return score(index, {"model": found}, with_masks=model.with_masks, backend=backend)["model"]


def detect_on(
    model: TrainedModel,
    index: AnnotationIndex,
    *,
    with_masks: bool,
    batch: int | None = None,
    workers: int = 0,
) -> Predictions:
    """Detect on all images of a data set, as evaluations in training do.

    Args:
        model: from `lgd.load`.
        index: the data set.
        with_masks: whether the masks are wanted that a model predicts.
        batch: images that the model looks at together; None for as many as in training.
        workers: see `evaluate`.

    Returns:
        What was found, with the ids of `index`, sorted by image.

    Raises:
        DataError: see `evaluate`.
    """
    theirs, rule = Classes(index.class_names, index.category_ids), model.rule
    places = Classes(model.class_names, model.category_ids).places_in(theirs)
    if places is None:
        raise DataError(
            f"{index.name} has other classes ({name_some(theirs.names, at_most=10)}) than the model "
            f"({name_some(model.class_names, at_most=10)}); give it the model's names where the same is meant"
        )
    category_ids = [index.category_ids[place] for place in places]
    batches = test_loader(
        index,
        image_format=rule.image_format,
        batch_size=batch or rule.batch_size,
        world_size=1,
        rank=0,
        min_size=rule.min_size,
        max_size=rule.max_size,
        num_workers=workers,
        layout=rule.layout,
        decoding=rule.decoding,
        with_masks=with_masks,
    )
    parts = []
    for each in follow_batches(batches, index):
        detections = model.run(each)
        if not with_masks:
            detections = [replace(some, masks=None) for some in detections]
        parts.append(collect_predictions(detections, each, category_ids))
    return Predictions.join(parts).sort_by_image()
