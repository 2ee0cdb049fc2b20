"""Compare: two models on the same pictures, with intervals by drawing pictures anew (bootstrap)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import hotcoco
import numpy as np

from lgd.analyse.findings import Analysis
from lgd.analyse.images import ImageCounts, is_found
from lgd.data.index import Floats
from lgd.evaluation.coco import hotcoco_evaluator
from lgd.evaluation.ground_truth import GroundTruth

_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100")
CONFIDENCE = 0.95
_SEED = 1


@dataclass(frozen=True)
class Difference:
    """A number of both models, in percent, and by how much B is above A.

    Attributes:
        name: of the metric or class.
        first: A's.
        second: B's.
        difference: B - A.
        low: lower end of the interval of the difference.
        high: upper end.
    """

    name: str
    first: float
    second: float
    difference: float
    low: float
    high: float

    @property
    def is_clear(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Paired:
    """What the two models did with the same things.

    Attributes:
        both: both did well (of pictures: equally well).
        only_first: A did better.
        only_second: B did better.
        neither: neither did well (of pictures: 0).
        chance: how likely so uneven a split is among those that differ, if the models were alike (McNemar's
            test, exact); in [0, 1].
    """

    both: int
    only_first: int
    only_second: int
    neither: int
    chance: float


@dataclass(frozen=True)
class Comparison:
    """Two models on the same pictures.

    Attributes:
        first: name of A.
        second: name of B.
        rounds: how often pictures were drawn anew.
        metrics: of all classes.
        classes: AP of each class that has objects.
        objects: found or not, at the thresholds of each model.
        pictures: whose F1 is the better one.
        gains: (I,) F1 of B minus that of A of each picture.
    """

    first: str
    second: str
    rounds: int
    metrics: Sequence[Difference]
    classes: Sequence[Difference]
    objects: Paired
    pictures: Paired
    gains: Floats


def compare(
    truth: GroundTruth,
    analyses: Sequence[Analysis],
    counts: Sequence[ImageCounts],
    *,
    rounds: int,
    advance: Callable[[int], None] = lambda steps: None,
) -> Comparison:
    """Compare model A with model B.

    Args:
        truth: the objects.
        analyses: of A and B.
        counts: likewise, of each image.
        rounds: how often pictures are drawn anew.
        advance: told after each class, of which there is one more, that it is done.
    """
    first, second = analyses
    evaluators = [hotcoco_evaluator(truth, each.found) for each in analyses]
    metrics = [each for each in _differences(evaluators, rounds) if each.name in _METRICS]
    advance(1)
    classes = []
    for label, numbers in enumerate(first.findings.classes):
        if numbers.objects:
            for evaluator in evaluators:
                evaluator.params.cat_ids = [label + 1]
                evaluator.evaluate()
            whole = _differences(evaluators, rounds)[0]
            classes.append(
                Difference(numbers.name, whole.first, whole.second, whole.difference, whole.low, whole.high)
            )
        advance(1)
    gains = counts[1].f1 - counts[0].f1
    found = [is_found(each)[~truth.crowd] for each in analyses]
    better, worse = int((gains > 0).sum()), int((gains < 0).sum())
    return Comparison(
        first.findings.name,
        second.findings.name,
        rounds,
        metrics,
        classes,
        _pair(int((found[0] & found[1]).sum()), int((found[0] & ~found[1]).sum()),
              int((found[1] & ~found[0]).sum()), int((~found[0] & ~found[1]).sum())),
        _pair(len(gains) - better - worse, worse, better, 0),
        gains,
    )  # fmt: skip


def _differences(evaluators: Sequence[hotcoco.COCOeval], rounds: int) -> list[Difference]:
    """Those of all metrics that can be measured, AP first."""
    first, second = evaluators
    said = hotcoco.compare(first, second, n_bootstrap=rounds, seed=_SEED, confidence=CONFIDENCE)
    return [
        Difference(
            name,
            100 * said["metrics_a"][name],
            100 * said["metrics_b"][name],
            100 * said["deltas"][name],
            100 * said["ci"][name]["lower"],
            100 * said["ci"][name]["upper"],
        )
        for name in said["metric_keys"]
        if said["metrics_a"][name] >= 0
    ]


def _pair(both: int, only_first: int, only_second: int, neither: int) -> Paired:
    from scipy.stats import binomtest

    differing = only_first + only_second
    chance = float(binomtest(only_second, differing).pvalue) if differing else 1.0
    return Paired(both, only_first, only_second, neither, chance)


def most_changed(gains: Floats, most: int) -> tuple[list[int], list[int]]:
    """The images on which B is better than A by most, and those on which it is worse."""
    order = np.argsort(-gains, kind="stable").tolist()
    better = [i for i in order[:most] if gains[i] > 0]
    worse = [i for i in order[::-1][:most] if gains[i] < 0]
    return better, worse
