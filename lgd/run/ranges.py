"""Which values of pictures of more than 8 bits become 0 and 255: as set, as trained with, or as measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lgd.config.schema import Config
from lgd.config.values import brief
from lgd.data.deep import WHOLE_RANGE, Range, find_range, is_range_setting
from lgd.data.errors import DataError, ImageError
from lgd.data.images import count_deep_values
from lgd.data.index import AnnotationIndex
from lgd.engine.checkpoint import Checkpoint
from lgd.ranks import process_group
from lgd.run.data import RunData
from lgd.weights.files import read_checkpoint_file
from lgd.weights.report import WeightsError
from lgd.weights.sources import fetch_weights
from lgd.words import counted

_KEY = "INPUT.RANGE"
_NEVER_DEEP = (".jpg", ".jpeg", ".jpe", ".webp", ".bmp", ".gif")
_MOST_READ = 100
_NOT_OURS = ("detectron2://", "torchvision://")

_Setting = Range | Literal["auto"]


def settle_range(cfg: Config, data: RunData, checkpoint: Checkpoint | None) -> tuple[Config, list[str]]:
    """Put two numbers in the place of INPUT.RANGE auto, where there are pictures that need them.

    A run that goes on keeps its range, weights of ours keep theirs, else the training sets (for an
    evaluation alone the test sets) are measured: all their 16-bit pictures, or a fixed sample of many. Every
    rank calls it, rank 0 reads.

    Returns:
        The configuration, and a line on what the range is and where it is from.

    Raises:
        DataError: a picture cannot be read, or has 32 bits.
        WeightsError: MODEL.WEIGHTS cannot be read.
    """
    outcome = _attempt(cfg, data, checkpoint) if process_group.is_main() else None
    outcome = process_group.broadcast_object(outcome)
    if isinstance(outcome, Exception):
        raise outcome
    value_range, lines = outcome
    return replace(cfg, input=replace(cfg.input, range=value_range)), lines


def _attempt(
    cfg: Config, data: RunData, checkpoint: Checkpoint | None
) -> tuple[_Setting, list[str]] | Exception:
    try:
        if checkpoint is not None:
            return _go_on(cfg, checkpoint)
        return _begin(cfg, [data.train] if data.train is not None else list(data.tests.values()))
    except (DataError, WeightsError) as error:
        return error


def _go_on(cfg: Config, checkpoint: Checkpoint) -> tuple[_Setting, list[str]]:
    trained = _trained_range(checkpoint.state["config"])
    return (trained, []) if cfg.input.range == "auto" else (cfg.input.range, [])


def _begin(cfg: Config, indices: Iterable[AnnotationIndex]) -> tuple[_Setting, list[str]]:
    asked = cfg.input.range
    if asked != "auto":
        trained = _range_of_weights(cfg)
        if trained in (None, asked):
            return asked, []
        return asked, [f"{_KEY} {_say(asked)}, but {cfg.model.weights} was trained with {_say(trained)}"]
    counts, num_read = _count(indices, skips=cfg.dataloader.on_bad_image == "skip")
    if not num_read:
        return "auto", []
    trained = _range_of_weights(cfg)
    if trained is not None:
        return trained, [f"{_KEY} {_say(trained)}, as {cfg.model.weights} was trained with"]
    measured = find_range(counts)
    return measured, [
        f"{_KEY} {_say(measured)} becomes 0 to 255: measured on {counted(num_read, 'picture')} of 16 bits "
        "(all but one pixel in 100,000 at either end); set two numbers to choose another"
    ]


def _range_of_weights(cfg: Config) -> Range | None:
    """What MODEL.WEIGHTS was trained with; None where it is no file of ours, or saw no such pictures."""
    if not cfg.model.weights or cfg.model.weights.startswith(_NOT_OURS):
        return None
    settings = read_checkpoint_file(fetch_weights(cfg.model.weights)).metadata.get("config")
    if not isinstance(settings, Mapping) or "INPUT.FORMAT" not in settings:
        return None
    if not is_range_setting(settings.get(_KEY, WHOLE_RANGE)):
        raise WeightsError(
            f"{cfg.model.weights}: its {_KEY} is {brief(settings[_KEY])}, neither auto nor the lowest and "
            "the highest value; give another file as MODEL.WEIGHTS"
        )
    trained = _trained_range(settings)
    return None if trained == "auto" else trained


def _trained_range(settings: Mapping[str, Any]) -> _Setting:
    """What settings of a training say; those from before there was such a setting took all of 16 bits."""
    said = settings.get(_KEY, WHOLE_RANGE)
    return "auto" if said == "auto" else (float(said[0]), float(said[1]))


def _count(indices: Iterable[AnnotationIndex], *, skips: bool) -> tuple[Any, int]:
    """Count the values of 16-bit pictures, and these."""
    counts, num_read = np.zeros(65536, dtype=np.int64), 0
    for path in (path for index in indices for path in _choose_paths(index)):
        try:
            found = count_deep_values(path)
        except ImageError:
            if not skips:
                raise
            continue
        if found is not None:
            counts, num_read = counts + found, num_read + 1
    return counts, num_read


def _choose_paths(index: AnnotationIndex) -> list[Path]:
    """Of the pictures whose format may have more than 8 bits all, or a sample that is always the same."""
    places = [i for i, name in enumerate(index.file_names()) if not name.lower().endswith(_NEVER_DEEP)]
    if len(places) > _MOST_READ:
        chosen = np.random.default_rng(0).choice(len(places), _MOST_READ, replace=False)
        places = [places[i] for i in sorted(chosen.tolist())]
    return [index.path(i) for i in places]


def _say(value_range: Range) -> str:
    return f"[{value_range[0]:g}, {value_range[1]:g}]"
