"""POTO (arXiv 2012.03544): one location for every object, chosen by what is predicted there.

Legend: B images, A locations of all levels, N object slots per image, n objects of one image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lgd.detectors.point_head import PointPredictions
from lgd.detectors.points import PointLevel
from lgd.ops.boxes import box_iou
from lgd.ops.locations import boxes_around, center_boxes, is_inside
from lgd.structures import Targets


@dataclass(frozen=True)
class POTOAssigner:
    """See `lgd.detectors.points.Assigner`.

    The matching of largest total quality (eq. 1): the predicted score of the object's class to the power of
    1 - alpha times the predicted box's IoU to the power of alpha; -1 outside the object's centre box. So an
    object gets a location outside only where all inside are taken, and none only if there are more objects
    than locations.

    Attributes:
        alpha: weight of the IoU, in [0, 1].
        center_radius: half side of the centre box in strides, inside the object's box; 0 for the whole box.
    """

    alpha: float
    center_radius: float

    def __call__(
        self, levels: Sequence[PointLevel], targets: Targets, predictions: PointPredictions
    ) -> Tensor:
        """Match image by image, on the host: the assignment problem is solved there."""
        from scipy.optimize import linear_sum_assignment  # slow to import, and of no use to other detectors

        slots = targets.labels.new_full(predictions.logits.shape[:2], -1)
        for image, valid in enumerate(targets.valid.cpu()):
            objects = valid.nonzero().squeeze(1).to(slots.device)
            quality = self._rate(levels, targets, predictions, image, objects)
            rows, columns = linear_sum_assignment(quality.cpu().numpy(), maximize=True)
            slots[image, torch.from_numpy(columns).to(slots.device)] = objects[
                torch.from_numpy(rows).to(slots.device)
            ]
        return slots

    def _rate(
        self,
        levels: Sequence[PointLevel],
        targets: Targets,
        predictions: PointPredictions,
        image: int,
        objects: Tensor,
    ) -> Tensor:
        """(n, A) quality of every location for the `objects` (n,) of one image."""
        boxes = targets.boxes[image, objects]
        locations = torch.cat([level.locations for level in levels])
        scores = predictions.logits[image][:, targets.labels[image, objects]].T.sigmoid()
        overlaps = box_iou(boxes, boxes_around(locations, predictions.distances[image]))
        quality = scores ** (1 - self.alpha) * overlaps**self.alpha
        inside = torch.cat(
            [
                is_inside(level.locations, center_boxes(boxes[:, None], self.center_radius * level.stride))
                for level in levels
            ],
            dim=1,
        )
        # Predictions gone astray are for the loss to show, not for the solver to fail on.
        return torch.where(inside, quality, -1).nan_to_num(nan=-1)
