"""How far an exported file's detections are from those of the model that it was made of.

Legend: N detections of the one, M of the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lgd.ops.boxes import box_iou
from lgd.structures import Detections
from lgd.words import counted

_MOST_TIES = 0.01
"""Share of the detections that may be ties: what goes wrong everywhere is none."""


@dataclass(frozen=True)
class Tolerance:
    """How far apart two detections of the same object may be.

    Attributes:
        pixels: each side of the box, pixels of the picture.
        score: the score.
        unmatched: share of the detections that the other may lack.
    """

    pixels: float = 1e-3
    score: float = 1e-4
    unmatched: float = 0.0


HALF_TOLERANCE = Tolerance(pixels=2.0, score=0.02, unmatched=0.01)
"""Where the network computes in float16, of three digits: of overlapping boxes another one may stay."""


@dataclass(frozen=True)
class Comparison:
    """Two models over the same pictures.

    Attributes:
        pictures: their number.
        matched: detections of both that agree to within the tolerance.
        unmatched: detections of one of them that the other lacks.
        ties: of one of them, but for reasons that rounding decides: the score is at the threshold or at that
            of the last one of a full list; or the other kept an overlapping box of the same score instead.
        pixels: largest difference of a box's side: of the matched ones, and of others that overlap by half.
        score: largest difference of their scores.
        mask: largest difference of a probability in the masks of the matched ones.
    """

    pictures: int = 0
    matched: int = 0
    unmatched: int = 0
    ties: int = 0
    pixels: float = 0.0
    score: float = 0.0
    mask: float = 0.0

    def is_within(self, tolerance: Tolerance) -> bool:
        """Whether nothing is beyond the tolerance."""
        every = 2 * self.matched + self.ties + self.unmatched
        return self.unmatched <= tolerance.unmatched * every and self.ties <= _MOST_TIES * every

    def __str__(self) -> str:
        """Say it in a line."""
        text = (
            f"{counted(self.pictures, 'picture')}: {counted(self.matched, 'box', 'boxes')} matched, "
            f"{self.unmatched} unmatched, {self.ties} tied; largest difference {self.pixels:.2g} px, "
            f"{self.score:.2g} of a score"
        )
        return text + (f", {self.mask:.2g} of a mask" if self.mask else "")


def join_comparisons(parts: Iterable[Comparison]) -> Comparison:
    """Of several sets of pictures, that of all."""
    total = Comparison()
    for part in parts:
        total = Comparison(
            total.pictures + part.pictures,
            total.matched + part.matched,
            total.unmatched + part.unmatched,
            total.ties + part.ties,
            max(total.pixels, part.pixels),
            max(total.score, part.score),
            max(total.mask, part.mask),
        )
    return total


def compare(
    ours: Detections, theirs: Detections, tolerance: Tolerance, limits: Mapping[str, float | None]
) -> Comparison:
    """Hold two lists of detections of a picture against each other.

    Args:
        ours: on the CPU.
        theirs: likewise.
        tolerance: how far apart those of an object may be.
        limits: see `lgd.export.about.About`.
    """
    distances, gaps = _differences(ours, theirs)
    pairs = _pair_off(distances, (distances <= tolerance.pixels) & (gaps <= tolerance.score))
    rests = [sorted({*range(len(x.scores))} - {*y}) for x, y in zip((ours, theirs), pairs, strict=True)]
    rest = distances[rests[0]][:, rests[1]]
    alike = (box_iou(ours.boxes[rests[0]], theirs.boxes[rests[1]]) > 0.5) & rest.isfinite()
    exchanged = alike & (gaps[rests[0]][:, rests[1]] <= tolerance.score)
    tied = (
        _is_at_limit(ours, theirs, tolerance, limits)[rests[0]] | exchanged.any(dim=1),
        _is_at_limit(theirs, ours, tolerance, limits)[rests[1]] | exchanged.any(dim=0),
    )
    ties = int(tied[0].sum() + tied[1].sum())
    far = alike & ~exchanged
    return Comparison(
        pictures=1,
        matched=len(pairs[0]),
        unmatched=len(rests[0]) + len(rests[1]) - ties,
        ties=ties,
        pixels=max(_largest(distances[pairs]), _largest(rest[far])),
        score=max(_largest(gaps[pairs]), _largest(gaps[rests[0]][:, rests[1]][far])),
        mask=_mask_difference(ours, theirs, pairs),
    )


def _differences(ours: Detections, theirs: Detections) -> tuple[Tensor, Tensor]:
    """(N, M) of boxes, pixels, infinite where the classes differ, and of scores."""
    distances = (ours.boxes[:, None] - theirs.boxes).abs().amax(dim=-1).double()
    same = ours.labels[:, None] == theirs.labels
    return torch.where(same, distances, torch.inf), (ours.scores[:, None] - theirs.scores).abs().double()


def _pair_off(distances: Tensor, near: Tensor) -> tuple[list[int], list[int]]:
    """Pairs (rows, columns) of those that are near, the nearest first; none twice."""
    rows, columns = near.nonzero(as_tuple=True)
    order = distances[rows, columns].argsort(stable=True)
    pairs: dict[int, int] = {}
    taken: set[int] = set()
    for row, column in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        if row not in pairs and column not in taken:
            pairs[row] = column
            taken.add(column)
    return list(pairs), list(pairs.values())


def _is_at_limit(
    found: Detections, other: Detections, tolerance: Tolerance, limits: Mapping[str, float | None]
) -> Tensor:
    """(N,) bool: whether a score is so low that the other list may just have left it out."""
    least = limits["score_threshold"] or 0.0
    if len(other.scores) == limits["detections"]:
        least = max(least, float(other.scores[-1]))
    return found.scores <= least + tolerance.score


def _mask_difference(ours: Detections, theirs: Detections, pairs: tuple[list[int], list[int]]) -> float:
    if ours.masks is None or theirs.masks is None:
        return 0.0
    return _largest((ours.masks[pairs[0]] - theirs.masks[pairs[1]]).abs())


def _largest(x: Tensor) -> float:
    return float(x.max()) if x.numel() else 0.0
