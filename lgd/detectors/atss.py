"""ATSS (arXiv 1912.02424): every object sets its own threshold from the locations nearest to it.

Legend: B images, A locations of all levels (A_l of one), N object slots per image, T candidates per object.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lgd.detectors.point_head import PointPredictions
from lgd.detectors.points import PointLevel, object_chunks
from lgd.ops.boxes import box_iou
from lgd.ops.locations import is_inside
from lgd.structures import Targets


@dataclass(frozen=True)
class ATSSAssigner:
    """See `lgd.detectors.points.Assigner`.

    The candidates of an object are, on every level, the locations nearest to its centre. Each stands for a
    square anchor around it; those whose overlap with the object reaches the mean plus the standard deviation
    of all its candidates, and that lie inside the object, answer for it. Of several objects a location takes
    the one of largest overlap, the first of equals.

    A level of fewer than `num_nearest` locations (p7 of an image below some 264 pixels) gives all it has; the
    reference fails there.

    Attributes:
        anchor_scale: side of the anchors in strides.
        num_nearest: candidates of each level.
    """

    anchor_scale: float
    num_nearest: int

    def __call__(
        self, levels: Sequence[PointLevel], targets: Targets, predictions: PointPredictions
    ) -> Tensor:
        """Match by overlap; the predictions play no part."""
        locations = torch.cat([level.locations for level in levels])
        half_sides = torch.cat(
            [
                torch.full_like(level.locations[:, :1], self.anchor_scale * level.stride / 2)
                for level in levels
            ]
        )
        candidates = self._find_candidates(levels, targets)
        boxes = targets.boxes[:, :, None]
        anchors = torch.cat([locations - half_sides, locations + half_sides], dim=1)[candidates]
        overlaps = box_iou(boxes, anchors).squeeze(2)
        matched = overlaps >= _thresholds(overlaps)
        matched &= is_inside(locations[candidates], boxes) & targets.valid[..., None]
        return _take_best(candidates, torch.where(matched, overlaps, -1), len(locations))

    def _find_candidates(self, levels: Sequence[PointLevel], targets: Targets) -> Tensor:
        """(B, N, T) indices into the locations of all levels."""
        candidates, num_before = [], 0
        for level in levels:
            num_locations = len(level.locations)
            nearest = [
                _distances(targets.boxes[:, chunk], level.locations)
                .topk(min(self.num_nearest, num_locations), dim=2, largest=False)
                .indices
                for chunk in object_chunks(targets, num_locations)
            ]
            candidates.append(torch.cat(nearest, dim=1) + num_before)
            num_before += num_locations
        return torch.cat(candidates, dim=2)


def _distances(boxes: Tensor, locations: Tensor) -> Tensor:
    """(B, n, A_l) from the boxes' centres, pixels."""
    centers = (boxes[..., :2] + boxes[..., 2:]) / 2
    dx, dy = (centers[:, :, None] - locations).unbind(-1)
    # With the root, though it changes no order: rounding makes ties of near distances, as in the reference.
    return (dx.square() + dy.square()).sqrt()


def _thresholds(overlaps: Tensor) -> Tensor:
    """(B, N, 1) for overlaps (B, N, T)."""
    mean = overlaps.mean(dim=2, keepdim=True)
    return mean if overlaps.shape[2] == 1 else mean + overlaps.std(dim=2, keepdim=True)


def _take_best(candidates: Tensor, overlaps: Tensor, num_locations: int) -> Tensor:
    """Turn each object's candidates into each location's object.

    Args:
        candidates: (B, N, T) locations.
        overlaps: (B, N, T), -1 for candidates that don't count.
        num_locations: A.

    Returns:
        (B, A) the slot of largest overlap, -1 for none.
    """
    num_images, num_slots, _ = candidates.shape
    flat = candidates.flatten(1)
    best = overlaps.new_full((num_images, num_locations), -1)
    best = best.scatter_reduce(1, flat, overlaps.flatten(1), "amax")
    is_best = (overlaps >= 0) & (overlaps == best.gather(1, flat).view_as(overlaps))
    slots = torch.arange(num_slots, device=flat.device)[:, None]
    first = flat.new_full((num_images, num_locations), num_slots)
    first = first.scatter_reduce(1, flat, torch.where(is_best, slots, num_slots).flatten(1), "amin")
    return torch.where(first < num_slots, first, -1)
