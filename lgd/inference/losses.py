"""Losses on a test set: what a detector's losses on each image come to, in the mean.

Legend: B images, L losses.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from lgd.detectors.protocol import Detector
from lgd.ranks import process_group
from lgd.structures import Batch, Features

ImageLosses = Mapping[str, Mapping[int, Mapping[str, float]]]
"""Model -> image id -> loss by name."""


class LossMeter:
    """Collects the losses of student and teacher on the images of this rank.

    Each image is held against its labels by itself, as a batch of one on one rank: so the numbers depend
    neither on the batches that a test set is gone through in nor on the number of ranks. What a detector
    samples at random depends on the image's id alone. Layers are as in evaluation: batch norm has its running
    statistics. The distillation loss, which compares features, is none of these.
    """

    def __init__(self, student: Detector) -> None:
        self._student = student
        self._found: list[tuple[str, int, tuple[str, ...], Tensor]] = []

    def add(self, pyramids: Mapping[str, Features], batch: Batch) -> None:
        """Take a batch; asks nothing of the device.

        Args:
            pyramids: the student's features by model, "student" first, and "teacher" if there is one.
            batch: images and targets.
        """
        devices = [batch.images.device] if batch.images.is_cuda else []
        for index, image_id in enumerate(batch.image_ids.tolist()):
            image, assignment = batch.image(index), None
            with process_group.alone(), torch.random.fork_rng(devices=devices):
                torch.manual_seed(image_id)
                for model, features in pyramids.items():
                    own = {level: x[index : index + 1] for level, x in features.items()}
                    losses, assignment = self._student.compute_losses(own, image, assignment)
                    values = torch.stack([value.double() for value in losses.values()])
                    self._found.append((model, image_id, tuple(losses), values))

    def read(self) -> ImageLosses:
        """The losses so far, from the device."""
        read: dict[str, dict[int, dict[str, float]]] = {}
        if self._found:
            values = iter(torch.cat([values for *_, values in self._found]).tolist())
            for model, image_id, names, _ in self._found:
                read.setdefault(model, {})[image_id] = {name: next(values) for name in names}
        return read


def average_losses(parts: Iterable[ImageLosses]) -> dict[str, dict[str, float]]:
    """Average over the images of all ranks, with the sum of all losses as "total_loss".

    Args:
        parts: of each rank.
    """
    columns: dict[str, dict[str, list[float]]] = {}
    for part in parts:
        for model, images in part.items():
            for losses in images.values():
                for name, value in losses.items():
                    columns.setdefault(model, {}).setdefault(name, []).append(value)
    averages = {
        # A sum that is rounded once is the same in any order.
        model: {name: math.fsum(values) / len(values) for name, values in losses.items()}
        for model, losses in columns.items()
    }
    return {model: {"total_loss": sum(losses.values()), **losses} for model, losses in averages.items()}
