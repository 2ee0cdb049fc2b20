"""FCOS (arXiv 1904.01355): a location answers for the smallest object around it that its level is for.

Legend: B images, A_l locations of one level, N object slots per image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from lgd.detectors.point_head import PointPredictions
from lgd.detectors.points import PointLevel, object_chunks
from lgd.ops.boxes import box_area
from lgd.ops.locations import center_boxes, is_inside, side_distances
from lgd.structures import Targets


@dataclass(frozen=True)
class FCOSAssigner:
    """See `lgd.detectors.points.Assigner`.

    A location is a candidate for the objects in whose centre box it lies, strictly, and whose farthest side
    its level is for; of these it takes the one of smallest area, the first of equals.

    Attributes:
        center_radius: half side of the centre box in strides, inside the object's box; 0 for the whole box.
        size_ranges: lowest and highest distance of the farthest side by level, pixels, both included.

    Raises:
        ValueError: a range whose ends are the wrong way round.
    """

    center_radius: float
    size_ranges: Sequence[tuple[float, float]]

    def __post_init__(self) -> None:
        for low, high in self.size_ranges:
            if not low <= high:
                raise ValueError(f"the range of sizes ({low}, {high}) is empty; give (lowest, highest)")

    def __call__(
        self, levels: Sequence[PointLevel], targets: Targets, predictions: PointPredictions
    ) -> Tensor:
        """Match by position and size; the predictions play no part."""
        return torch.cat(
            [
                self._match_level(level, size_range, targets)
                for level, size_range in zip(levels, self.size_ranges, strict=True)
            ],
            dim=1,
        )

    def _match_level(self, level: PointLevel, size_range: tuple[float, float], targets: Targets) -> Tensor:
        """(B, A_l) slots, -1 for background."""
        low, high = size_range
        shape = (targets.valid.shape[0], len(level.locations))
        smallest = targets.boxes.new_full(shape, math.inf)
        slots = targets.labels.new_full(shape, -1)
        for chunk in object_chunks(targets, len(level.locations)):
            boxes = targets.boxes[:, chunk, None]
            farthest = reduce(torch.maximum, side_distances(level.locations, boxes))
            fits = is_inside(level.locations, center_boxes(boxes, self.center_radius * level.stride))
            fits &= (farthest >= low) & (farthest <= high) & targets.valid[:, chunk, None]
            areas, indices = torch.where(fits, box_area(boxes), math.inf).min(dim=1)
            slots = torch.where(areas < smallest, indices + chunk.start, slots)
            smallest = torch.minimum(smallest, areas)
        return slots
