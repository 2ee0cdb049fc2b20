"""Suspect: labels that are likely wrong, because a model that is sure of itself says otherwise.

Legend: D detections, A objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lgd.analyse.findings import Analysis
from lgd.analyse.matches import BACKGROUND
from lgd.data.index import Floats, Integers
from lgd.evaluation.outcome import IOU

UNLABELLED, NOT_FOUND, OTHER_CLASS = "unlabelled", "not found", "other class"

REASONS = {
    UNLABELLED: "The model is sure of an object where nothing is labelled.",
    OTHER_CLASS: "The model is sure of another class than the label says.",
    NOT_FOUND: "Labels that no detection fits, of whatever class and score; the largest first.",
}
"""Kinds of suspects, and what is suspicious about them."""

MOST = 100
"""Suspects of a kind that are named."""


@dataclass(frozen=True)
class Suspect:
    """A label, or the lack of one.

    Attributes:
        reason: one of `REASONS`.
        image: in [0, I).
        box: xyxy, pixels: the label's, or where there is none the detection's.
        label: the class that is labelled; None where nothing is.
        found: the class that was found; None where nothing was.
        score: of what was found.
    """

    reason: str
    image: int
    box: tuple[float, float, float, float]
    label: int | None
    found: int | None
    score: float | None


def find_suspects(analysis: Analysis) -> list[Suspect]:
    """List likely label errors, of each kind the most suspicious first."""
    matches, kept = analysis.matches, analysis.kept
    boxes, object_boxes = matches.boxes, matches.object_boxes

    extra = np.flatnonzero(kept & (matches.kinds == BACKGROUND) & ~matches.in_crowd)
    unlabelled = [
        _suspect(UNLABELLED, int(matches.images[row]), boxes[row], None, row, analysis)
        for row in _best(extra, matches.scores[extra])
    ]

    rivals = matches.rivals
    rival_scores = np.where((rivals >= 0) & _at(kept, rivals), _at(matches.scores, rivals), 0.0)
    margins = rival_scores - matches.object_scores
    doubted = np.flatnonzero((margins > 0) & ~matches.crowd)
    other = [
        _suspect(OTHER_CLASS, int(matches.object_images[k]), object_boxes[k], k, int(rivals[k]), analysis)
        for k in _best(doubted, margins[doubted])
    ]

    lost = np.flatnonzero((matches.best_overlaps < IOU) & ~matches.crowd)
    sides = object_boxes[lost, 2:] - object_boxes[lost, :2]
    unfound = [
        _suspect(NOT_FOUND, int(matches.object_images[k]), object_boxes[k], k, None, analysis)
        for k in _best(lost, sides[:, 0] * sides[:, 1])
    ]
    return [*unlabelled, *other, *unfound]


def _best(rows: Integers, values: Floats) -> Sequence[int]:
    best: list[int] = rows[np.argsort(-values, kind="stable")][:MOST].tolist()
    return best


def _at(column: Floats | np.ndarray, places: Integers) -> np.ndarray:
    """A column at some places, of which -1 gives nothing."""
    if not len(column):
        return np.zeros(len(places), dtype=column.dtype)
    return np.where(places >= 0, column[places], 0)


def _suspect(
    reason: str, image: int, box: Floats, labelled: int | None, found: int | None, analysis: Analysis
) -> Suspect:
    matches = analysis.matches
    x1, y1, x2, y2 = box.tolist()
    return Suspect(
        reason,
        image,
        (x1, y1, x2, y2),
        None if labelled is None else int(matches.object_labels[labelled]),
        None if found is None else int(matches.labels[found]),
        None if found is None else float(matches.scores[found]),
    )
