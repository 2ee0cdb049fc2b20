"""What the detectors that predict at every cell of the feature maps share.

Legend: B images, P positions that predict (anchors or locations) of one level, A of all levels, K classes,
T candidates of each image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from lgd.detectors.protocol import TowerFeatures
from lgd.ops.predictions import fill_slots, take_above, take_best, take_rows
from lgd.structures import Features

Towers = tuple[nn.Sequential, nn.Sequential]
"""Of a head: the one that ends in the scores, and the one that ends in the boxes."""

_ROUNDING = 1e-3
"""More than a threshold's logit may differ from that of a score by rounding."""


@dataclass(frozen=True)
class Candidates:
    """The best scores of each image of a batch: level by level, within it best first, then the unused slots.

    Attributes:
        positions: (B, T) int64 in [0, A).
        labels: (B, T) int64 in [0, K).
        logits: (B, T) of the scores; -inf in the unused slots. They tell apart what rounds to the same score.
    """

    positions: Tensor
    labels: Tensor
    logits: Tensor


def init_head(head: nn.Module, cls_score: nn.Conv2d, prior_prob: float) -> None:
    """Start a head: convolutions of deviation 0.01, biases 0, but every class score is `prior_prob`.

    Source: RetinaNet (arXiv 1708.02002, section 4.1).
    """
    for module in head.modules():
        if isinstance(module, nn.Conv2d):
            assert module.bias is not None
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)
    assert cls_score.bias is not None
    nn.init.constant_(cls_score.bias, -math.log((1 - prior_prob) / prior_prob))


def count_convs(tower: nn.Sequential) -> int:
    """Convolutions of a head's tower."""
    return sum(isinstance(layer, nn.Conv2d) for layer in tower)


def begin_towers(towers: Towers, features: Features, num_convs: int) -> TowerFeatures:
    """Run the first convolutions of each tower, with what follows each of them, on the same features."""
    for_class, for_box = (_cut(tower, num_convs)[0] for tower in towers)
    return TowerFeatures(
        for_class={level: for_class(x) for level, x in features.items()},
        for_box={level: for_box(x) for level, x in features.items()},
    )


def finish_towers(towers: Towers, begun: TowerFeatures, num_convs: int) -> TowerFeatures:
    """Run what `begin_towers` has left: the features from which the predicting convolutions predict."""
    for_class, for_box = (_cut(tower, num_convs)[1] for tower in towers)
    return TowerFeatures(
        for_class={level: for_class(x) for level, x in begun.for_class.items()},
        for_box={level: for_box(x) for level, x in begun.for_box.items()},
    )


def _cut(tower: nn.Sequential, num_convs: int) -> tuple[nn.Sequential, nn.Sequential]:
    starts = [place for place, layer in enumerate(tower) if isinstance(layer, nn.Conv2d)]
    place = [*starts, len(tower)][num_convs]
    return tower[:place], tower[place:]


def join_pyramids(pyramids: Sequence[Features]) -> Features:
    """Concatenate features of the same levels and shapes along the batch, so that a head runs once on all.

    Nothing in a head looks beyond its image (group norm is per image), so each gets the numbers it would get
    alone.
    """
    if len(pyramids) == 1:
        return pyramids[0]
    return {level: torch.cat([features[level] for features in pyramids]) for level in pyramids[0]}


def select_candidates(
    levels: Sequence[Tensor],
    *,
    score_threshold: float,
    limits: Sequence[int],
    within_positions: bool = False,
) -> Candidates:
    """Choose the best scores of each level of each image.

    Equals come by position and label. They are common where the teacher's features are flat, and NMS keeps
    the first of them. No size depends on a value, and nothing waits for a device; on the CPU, where that
    costs nothing, there are only slots that are used by some image.

    Args:
        levels: (B, P, K) logits of each level.
        score_threshold: only scores above it, in [0, 1); the other slots stay unused.
        limits: of each level, at most so many of an image.
        within_positions: and no more than the level has positions.
    """
    parts, offset = [], 0
    for logits, slots in zip(levels, limits, strict=True):
        num_positions, num_classes = logits.shape[1:]
        limit = _smaller(slots, num_positions) if within_positions else slots
        if logits.is_cpu and score_threshold > 0 and not torch.compiler.is_compiling():
            best, pairs = _take_likely(logits, score_threshold, limit)
        else:
            best, pairs = _take_of_best_positions(logits, limit, slots)
        best = torch.where(best.sigmoid() > score_threshold, best, -torch.inf)
        parts.append((pairs // num_classes + offset, pairs % num_classes, best))
        offset += num_positions
    return Candidates(*(torch.cat(columns, dim=1) for columns in zip(*parts, strict=True)))


def _take_likely(logits: Tensor, score_threshold: float, limit: int) -> tuple[Tensor, Tensor]:
    """The best logits (B, T) that may be above the threshold, and their pairs of position and class."""
    least = math.log(score_threshold / (1 - score_threshold))
    likely, pairs = take_above(logits.flatten(1), least - _ROUNDING)
    best, order = take_best(likely, limit)
    return best, pairs.gather(1, order)


def _take_of_best_positions(logits: Tensor, limit: int, num_slots: int) -> tuple[Tensor, Tensor]:
    """The best logits (B, T) and their pairs of position and class.

    The best pairs lie at the positions whose best pairs are the best: most are never sorted. A program that
    is exported has up to `num_slots` of them, of which `limit` may be used.
    """
    num_classes = logits.shape[2]
    rows = take_best(logits.amax(dim=2), limit)[1].sort(dim=1).values
    scores = take_rows(logits, rows)
    if not torch.compiler.is_exporting():
        best, places = take_best(scores.flatten(1), limit)
        chosen = places // num_classes
    else:
        best, places = take_best(fill_slots(scores, num_slots, -torch.inf).flatten(1), num_slots)
        best = torch.where(torch.arange(best.shape[1], device=best.device) < limit, best, -torch.inf)
        # Slots that are not used lie beyond the rows.
        chosen = (places // num_classes).clamp(max=rows.shape[1] - 1)
    return best, rows.gather(1, chosen) * num_classes + places % num_classes


def select_as_reference(
    levels: Sequence[Tensor],
    *,
    score_threshold: float,
    limits: Sequence[int],
    within_positions: bool = False,
    sort_all: bool,
) -> Candidates:
    """`select_candidates` with the order of equal scores that torch's unstable sort leaves to the reference.

    For comparisons: it waits for the device at every level of every image.

    Args:
        levels: as there.
        score_threshold: as there.
        limits: as there.
        within_positions: as there.
        sort_all: sort all scores and apply the threshold to the best of them, as the reference's FCOS; its
            RetinaNet sorts the scores above the threshold.
    """
    images = []
    for image in range(len(levels[0])):
        parts, offset = [], 0
        for level, limit in zip(levels, limits, strict=True):
            logits, num_classes = level[image].flatten(), level.shape[2]
            scores = logits.sigmoid()
            above = scores > score_threshold
            chosen = (
                torch.arange(len(scores), device=scores.device) if sort_all else above.nonzero().squeeze(1)
            )
            most = min(limit, level.shape[1]) if within_positions else limit
            chosen = chosen[scores[chosen].sort(descending=True).indices[:most]]
            chosen = chosen[above[chosen]]
            parts.append((chosen // num_classes + offset, chosen % num_classes, logits[chosen]))
            offset += level.shape[1]
        images.append([torch.cat(columns) for columns in zip(*parts, strict=True)])
    columns = [list(column) for column in zip(*images, strict=True)]
    fillings = (0, 0, -torch.inf)
    return Candidates(*(pad_sequence(*x) for x in zip(columns, [True] * 3, fillings, strict=True)))


def _smaller(a: int, b: int) -> int:
    """Of two sizes; what is exported then knows of both."""
    return cast(int, torch.sym_min(a, b))
