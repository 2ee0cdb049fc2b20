"""The tensors that pass between the rooms of the library: batches, targets, detections.

Legend: B images of a batch, padded bottom and right to one canvas H x W; N object slots per image
(the largest count of the batch, at least 1); E edges of an outline; D detections of one image, or slots
for them. All boxes are xyxy pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

Features = Mapping[str, Tensor]
"""Feature maps by level name, fine to coarse: {"p3": (B, C, H_3, W_3), ...}."""


@dataclass(frozen=True)
class Outlines:
    """Instance masks of a batch as the edges of their outlines, padded to E edges per object.

    An object is the union of its parts; a point lies in a part when a ray from it crosses the part's edges an
    odd number of times. Polygons are parts of their own; a run-length mask is one part, the borders of its
    runs. So the masks can be resized and flipped exactly, and rasterised in any box (`lgd.ops.polygons`).

    Attributes:
        edges: (B, N, E, 4) float, x1 y1 x2 y2 in pixels of the canvas; zeros (no edge) in the unused slots.
        parts: (B, N, E) int64 in [0, num_parts), the part that each edge belongs to; 0 in the unused slots.
        num_parts: the largest number of parts of an object, at least 1.
    """

    edges: Tensor
    parts: Tensor
    num_parts: int

    def map(self, function: Callable[[Tensor], Tensor]) -> Outlines:
        """Return a copy with the function's results in place of the tensors."""
        return Outlines(function(self.edges), function(self.parts), self.num_parts)


@dataclass(frozen=True)
class Targets:
    """Ground truth of a batch, padded to N slots per image.

    Attributes:
        boxes: (B, N, 4) float, xyxy, pixels of the canvas; zeros in the unused slots.
        labels: (B, N) int64 in [0, num_classes); 0 in the unused slots.
        valid: (B, N) bool, True where a slot holds an object.
        outlines: the objects' masks; None where the model does not ask for masks.
    """

    boxes: Tensor
    labels: Tensor
    valid: Tensor
    outlines: Outlines | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> Targets:
        """Return a copy with the function's results in place of the tensors."""
        return Targets(
            boxes=function(self.boxes),
            labels=function(self.labels),
            valid=function(self.valid),
            outlines=self.outlines.map(function) if self.outlines else None,
        )


@dataclass(frozen=True)
class Batch:
    """Images and ground truth of one step.

    Attributes:
        images: (B, 3, H, W) uint8 or float, raw pixels in [0, 255] in the model's channel order,
            zero in the padding. Detectors normalise them.
        sizes: (B, 2) int64, (height, width) of each image on the canvas.
        original_sizes: (B, 2) int64, (height, width) of each image before resizing.
        image_ids: (B,) int64, the ids of the data set; on the host wherever the rest is, to be read without
            waiting for a device.
        targets: ground truth on the canvas.
        skipped: one message per unreadable image that was replaced in this batch.
        canvas: (2,) int64, (height, width) of the smallest canvas for these images, which is what labels are
            measured on where `images` have been padded to a larger one; None where they have not.
    """

    images: Tensor
    sizes: Tensor
    original_sizes: Tensor
    image_ids: Tensor
    targets: Targets
    skipped: tuple[str, ...] = ()
    canvas: Tensor | None = None

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """Return a copy on `device`."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def image(self, index: int) -> Self:
        """One image as a batch of its own, on the same canvas."""
        return self.part(slice(index, index + 1))

    def first(self, number: int) -> Self:
        """The first images as a batch of their own, on the same canvas."""
        return self.part(slice(number))

    def part(self, part: slice) -> Self:
        """Some images as a batch of their own, on the same canvas."""
        return replace(
            self,
            images=self.images[part],
            sizes=self.sizes[part],
            original_sizes=self.original_sizes[part],
            image_ids=self.image_ids[part],
            targets=self.targets.map(lambda tensor: tensor[part]),
            skipped=(),
        )

    def pin_memory(self) -> Batch:
        """Return a copy in page-locked memory (called by the data loader)."""
        return self.map(Tensor.pin_memory)

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """Return a copy with the function's results in place of the tensors, but for the ids."""
        return replace(
            self,
            images=function(self.images),
            sizes=function(self.sizes),
            original_sizes=function(self.original_sizes),
            targets=self.targets.map(function),
            canvas=None if self.canvas is None else function(self.canvas),
        )


@dataclass(frozen=True)
class Detections:
    """What a detector found on one image, best first.

    Attributes:
        boxes: (D, 4) float, xyxy, pixels of the original image, clipped to it.
        scores: (D,) float in [0, 1], descending.
        labels: (D,) int64 in [0, num_classes).
        masks: (D, M, M) float in [0, 1], the probability of the object on an M x M grid over its box; None
            where the detector makes no masks.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor | None = None

    def to(self, device: torch.device | str) -> Detections:
        """Return a copy on `device`."""
        masks = None if self.masks is None else self.masks.to(device)
        return Detections(self.boxes.to(device), self.scores.to(device), self.labels.to(device), masks)


@dataclass(frozen=True)
class PaddedDetections:
    """What a detector found on the images of a batch, in D slots of each: no size depends on a value.

    Attributes:
        boxes: (B, D, 4) float, xyxy, pixels of the original image, clipped to it; zeros in the unused slots.
        scores: (B, D) float in [0, 1], descending; zeros in the unused slots.
        labels: (B, D) int64 in [0, num_classes); zeros in the unused slots.
        valid: (B, D) bool, which slots are used: the first ones.
        masks: (B, D, M, M) as in `Detections`, zeros in the unused slots; None where the detector makes none.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    valid: Tensor
    masks: Tensor | None = None

    def cut(self) -> list[Detections]:
        """Part the images and leave out the unused slots: one host sync."""
        counts: list[int] = self.valid.sum(dim=1).tolist()
        return [
            Detections(
                self.boxes[image, :count],
                self.scores[image, :count],
                self.labels[image, :count],
                None if self.masks is None else self.masks[image, :count],
            )
            for image, count in enumerate(counts)
        ]
