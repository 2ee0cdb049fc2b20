"""Which weights are the best, and when to wait no longer for better ones."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lgd.config.values import ConfigError
from lgd.data.index import AnnotationIndex
from lgd.engine.checkpoint import FORMAT
from lgd.evaluation.results import Results
from lgd.evaluation.score import is_better, name_scores
from lgd.run.output import shorten
from lgd.words import counted

CANDIDATES = ("student", "ema")
"""What the best model is chosen among: the student, and where there is one its moving average."""


def find_best(results: Results | None, name: str) -> tuple[str, float | None]:
    """Of the candidates the better one on the first test set, and its metric.

    Without a metric, which can't be had without labels, it is the average: it is kept to be used.

    Args:
        results: of an evaluation.
        name: as TEST.BEST_METRIC has it.
    """
    kind, metric = _split(name)
    models: Mapping[str, Any] = next(iter((results or {}).values()), {})
    values: dict[str, float | None] = {}
    for model in CANDIDATES:
        numbers = models[model].get(kind) if model in models else None
        values[model] = numbers[metric] if numbers else None
    student, average = values["student"], values["ema"]
    if student is not None and (average is None or not is_better(name, average, student)):
        return "student", student
    return "ema", average


def file_content(
    weights: Mapping[str, Mapping[str, Tensor]], chosen: str, about: Mapping[str, Any]
) -> dict[str, Any]:
    """What a file of weights holds; where there is an average it says which it is.

    Args:
        weights: as from `weights_by_model`.
        chosen: "student", or "ema", which without an average is the student, too.
        about: whatever else.
    """
    chosen = chosen if chosen in weights else "student"
    says = {"chosen": chosen} if len(weights) > 1 else {}
    return {"format": FORMAT, "model": weights[chosen], **says, **about}


def wait_on(patience: Mapping[str, float], name: str, value: float | None, delta: float) -> dict[str, float]:
    """Count an evaluation.

    Args:
        patience: the metric to better, by its name, and the "evaluations" that have not; may be empty.
        name: of the metric.
        value: what it is now; None where it could not be measured.
        delta: by how much at least it must be better.
    """
    if name not in patience:
        return {} if value is None else {name: value, "evaluations": 0}
    before = patience[name]
    if value is not None and is_better(name, value, before) and abs(value - before) >= delta:
        return {name: value, "evaluations": 0}
    return {name: before, "evaluations": int(patience["evaluations"]) + 1}


def is_over(patience: Mapping[str, float], limit: int) -> bool:
    """Whether `limit` evaluations, if that is not 0, have come to nothing."""
    return 0 < limit <= patience.get("evaluations", 0)


def say_why(patience: Mapping[str, float]) -> str:
    """Why the training stops."""
    name = next(name for name in patience if name != "evaluations")
    times = f"{patience['evaluations']:g}"
    return (
        f"{name} has not been better than {patience[name]:.2f} in "
        f"{counted(times, 'evaluation')} (TEST.PATIENCE)"
    )


def require_metric(name: str, index: AnnotationIndex, *, with_masks: bool, cap: int) -> None:
    """See that there will be a metric of this name on the test set that chooses the best model.

    Raises:
        ConfigError: there will not be; says which there are.
    """
    kind, metric = _split(name)
    if not index.has_annotations:
        if name != "AP":
            raise ConfigError(f"TEST.BEST_METRIC {name}: {index.name} has no annotations to measure against")
        return
    names = name_scores(index, with_masks=with_masks, cap=cap)
    if metric not in names.get(kind, ()):
        known = [f"segm/{each}" if kind == "segm" else each for kind in names for each in names[kind]]
        general = [each for each in known if "-" not in each] + [each for each in known if "-" in each]
        near = difflib.get_close_matches(name, known, 1)
        raise ConfigError(
            f"TEST.BEST_METRIC {name} is not measured on {index.name}"
            + (f"; did you mean {near[0]}?" if near else "")
            + f" There are {shorten(general, limit=40)}"
        )


def _split(name: str) -> tuple[str, str]:
    """Kind and metric of "segm/AP"; without a kind it is the boxes'."""
    kind, separator, metric = name.partition("/")
    return (kind, metric) if separator and kind in ("bbox", "segm") else ("bbox", name)
