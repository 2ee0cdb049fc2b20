"""Count: errors picture by picture, at the thresholds of the classes.

Legend: I images, D detections, A objects.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lgd.analyse.findings import Analysis
from lgd.analyse.matches import RIGHT
from lgd.data.index import Flags, Floats, Integers


@dataclass(frozen=True)
class ImageCounts:
    """Of each image.

    Attributes:
        right: (I,) detections that are right.
        wrong: (I,) detections that are not.
        missed: (I,) objects that are not found.
        badness: (I,) errors weighed: a wrong detection counts its score, a missed object one.
    """

    right: Integers
    wrong: Integers
    missed: Integers
    badness: Floats

    @property
    def f1(self) -> Floats:
        """(I,) in [0, 1]; 1 where there is nothing and nothing was found."""
        total = 2 * self.right + self.wrong + self.missed
        f1: Floats = np.divide(2 * self.right, total, out=np.ones(len(total)), where=total > 0)
        return f1

    def worst(self, most: int) -> list[int]:
        """At most so many images with errors, the worst first."""
        order: list[int] = np.argsort(-self.badness, kind="stable")[:most].tolist()
        return [i for i in order if self.badness[i] > 0]


def is_found(analysis: Analysis) -> Flags:
    """(A,) whether an object was found by a detection that reaches the threshold."""
    matches = analysis.matches
    found = np.zeros(len(matches.crowd), dtype=bool)
    found[matches.partners[analysis.kept & (matches.kinds == RIGHT)]] = True
    return found


def count_by_image(analysis: Analysis, num_images: int) -> ImageCounts:
    """Count the errors of each image."""
    matches, kept = analysis.matches, analysis.kept
    wrong = kept & (matches.kinds != RIGHT)
    missed = ~is_found(analysis) & ~matches.crowd

    def count(images: Integers, weights: Floats | None = None) -> np.ndarray:
        return np.bincount(images, weights, minlength=num_images)

    misses = count(matches.object_images[missed])
    return ImageCounts(
        count(matches.images[kept & ~wrong]),
        count(matches.images[wrong]),
        misses,
        misses + count(matches.images[wrong], matches.scores[wrong]),
    )
