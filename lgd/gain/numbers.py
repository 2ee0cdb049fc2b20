"""What many runs come to: means, spreads, and differences between runs that differ in the method alone."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lgd.gain.study import EQUAL_TIME, PLAIN, TEACHER, Run

Results = Mapping[Run, Mapping[str, Any]]
"""What came out of each run that is done."""

_RESAMPLES = 10_000
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Gain:
    """A paired difference to the plain detector.

    Attributes:
        mean: AP.
        low: lower end of the bootstrap interval of the mean; None for fewer than two pairs.
        high: its upper end.
        pairs: runs that have the other one.
    """

    mean: float
    low: float | None
    high: float | None
    pairs: int


@dataclass(frozen=True)
class Row:
    """A method at one length on one data set and recipe.

    Attributes:
        data: line of the training set.
        recipe: as typed.
        method: its name.
        steps: of its trainings; of EQUAL_TIME their mean.
        runs: that are done.
        ap: mean box AP of the student.
        sd: its sample deviation; None for one run.
        ap50: mean.
        others: means of "mask AP" and "teacher AP" where there are.
        seconds: of a step, the median over the runs.
        memory: MiB, the median.
        gain: over the plain detector; None where nothing is paired.
        curve: [step, mean AP] where all runs have one.
    """

    data: str
    recipe: str
    method: str
    steps: int
    runs: int
    ap: float
    sd: float | None
    ap50: float
    others: Mapping[str, float]
    seconds: float
    memory: float
    gain: Gain | None
    curve: Sequence[tuple[int, float]]


def make_rows(results: Results, lengths: Mapping[Run, int]) -> list[Row]:
    """Put runs together that differ in seed and fold alone, in the order in which they come.

    Args:
        results: of all runs but those of pretrained teachers, which are left out.
        lengths: of the runs of EQUAL_TIME the steps of the plain ones that they are compared with.
    """
    groups: dict[tuple[str, str, int, str], list[Run]] = {}
    for run in results:
        if run.method != TEACHER:
            key = (run.data, run.recipe, lengths.get(run, run.steps), run.method)
            groups.setdefault(key, []).append(run)
    return [_make_row(key, runs, results) for key, runs in groups.items()]


def _make_row(key: tuple[str, str, int, str], runs: Sequence[Run], results: Results) -> Row:
    data, recipe, steps, method = key
    found = [results[run] for run in runs]
    aps = [each["AP"] for each in found]
    others = {
        name: statistics.mean(each[name] for each in found)
        for name in ("mask AP", "teacher AP")
        if all(name in each for each in found)
    }
    plain = {run: replace(run, method=PLAIN, steps=steps) for run in runs}
    pairs = [results[run]["AP"] - results[plain[run]]["AP"] for run in runs if plain[run] in results]
    return Row(
        data=data,
        recipe=recipe,
        method=method,
        steps=round(statistics.mean(run.steps for run in runs)),
        runs=len(runs),
        ap=statistics.mean(aps),
        sd=statistics.stdev(aps) if len(aps) > 1 else None,
        ap50=statistics.mean(each["AP50"] for each in found),
        others=others,
        seconds=statistics.median(each["seconds"] for each in found),
        memory=statistics.median(each["memory"] for each in found),
        gain=measure_gain(pairs) if pairs and method != PLAIN else None,
        curve=_mean_curve([each["curve"] for each in found]),
    )


def measure_gain(differences: Sequence[float]) -> Gain:
    """The mean of paired differences, and the middle 95 % of the means of as many drawn with replacement."""
    values = np.asarray(differences, dtype=np.float64)
    mean = float(values.mean())
    if len(values) < 2:
        return Gain(mean, None, None, len(values))
    drawn = np.random.default_rng(0).integers(len(values), size=(_RESAMPLES, len(values)))
    outside = (1 - _CONFIDENCE) / 2
    low, high = np.quantile(values[drawn].mean(axis=1), [outside, 1 - outside])
    return Gain(mean, float(low), float(high), len(values))


def _mean_curve(curves: Sequence[Sequence[Sequence[float]]]) -> list[tuple[int, float]]:
    by_step = [{int(step): ap for step, ap in curve} for curve in curves]
    steps = [step for step in by_step[0] if all(step in curve for curve in by_step)]
    return [(step, statistics.mean(curve[step] for curve in by_step)) for step in steps]


def equal_time(run: Run, results: Results) -> Run | None:
    """The plain training that takes as long as `run` did; None where the two were not both timed."""
    plain = replace(run, method=PLAIN)
    if run not in results or plain not in results:
        return None
    ratio = results[run]["seconds"] / results[plain]["seconds"]
    return replace(run, method=EQUAL_TIME, steps=max(1, round(run.steps * ratio)))
