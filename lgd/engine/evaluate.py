"""Run a detector (and its teacher) over a test set and collect what it finds on rank 0."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from lgd import distributed
from lgd.detectors.protocol import Detector
from lgd.evaluation.coco import to_coco_results
from lgd.structures import Batch, Detections, Features

Teach = Callable[[Features, Batch], Features]
"""The teacher as a function of the student's features and the batch's labels."""


@dataclass(frozen=True)
class Example:
    """One test image with what was found on it, for drawing.

    Attributes:
        image_id: its id in the data set.
        image: (3, h, w) uint8, the resized image without padding, in the model's channel order.
        detections: the student's, in pixels of `image`.
        gt_boxes: (G, 4) xyxy, pixels of `image`.
        gt_labels: (G,) int64.
    """

    image_id: int
    image: torch.Tensor
    detections: Detections
    gt_boxes: torch.Tensor
    gt_labels: torch.Tensor


@dataclass(frozen=True)
class Inference:
    """What a pass over a test set gave.

    Attributes:
        results: COCO results by model ("student" and, with a teacher, "teacher"), of all ranks.
        examples: images to draw.
        num_skipped: unreadable images that were left out, over all ranks.
    """

    results: dict[str, list[dict[str, Any]]]
    examples: list[Example] = field(default_factory=list)
    num_skipped: int = 0


@torch.no_grad()
def run_inference(
    student: Detector,
    batches: Iterable[Batch],
    category_ids: Sequence[int],
    *,
    device: torch.device,
    teach: Teach | None = None,
    mixed_precision: bool = False,
    num_examples: int = 0,
) -> Inference | None:
    """Detect on every batch of this rank; gather on rank 0.

    The student runs once: the teacher starts from its features.

    Args:
        student: the detector, in evaluation mode.
        batches: this rank's share of the test set.
        category_ids: the data set's category id of each class, by label.
        device: where the model lies.
        teach: the teacher; None evaluates the student alone.
        mixed_precision: run under bfloat16 autocast.
        num_examples: images of rank 0 to keep for drawing.

    Returns:
        Everything on rank 0, None on the others.
    """
    found: dict[str, list[tuple[int, Detections]]] = {"student": []}
    if teach is not None:
        found["teacher"] = []
    examples: list[Example] = []
    num_skipped = 0
    for host_batch in batches:
        num_skipped += len(host_batch.skipped)
        batch = host_batch.to(device, non_blocking=True)
        image_ids = host_batch.image_ids.tolist()
        with torch.autocast(device.type, torch.bfloat16, enabled=mixed_precision):
            for name, detections in _detect(student, teach, batch):
                found[name] += zip(image_ids, (d.to("cpu") for d in detections), strict=True)
        wanted = num_examples - len(examples) if distributed.is_main() else 0
        recent = [detections for _, detections in found["student"][-len(image_ids) :]]
        examples += [_example(host_batch, i, recent[i]) for i in range(min(wanted, len(image_ids)))]
    parts = distributed.gather_objects((found, num_skipped))
    if parts is None:
        return None
    return Inference(
        results={name: _merge((part[name] for part, _ in parts), category_ids) for name in found},
        examples=examples,
        num_skipped=sum(skipped for _, skipped in parts),
    )


def _detect(student: Detector, teach: Teach | None, batch: Batch) -> Iterator[tuple[str, list[Detections]]]:
    """Yield the student's detections, then the teacher's."""
    features = student.extract_features(batch)
    yield "student", student.detect(features, batch)
    if teach is not None:
        yield "teacher", student.detect(teach(features, batch), batch)


def _merge(
    parts: Iterable[list[tuple[int, Detections]]], category_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """COCO results of all ranks, in the order of the image ids whatever the number of ranks."""
    images = sorted((image for part in parts for image in part), key=lambda image: image[0])
    return [
        result
        for image_id, detections in images
        for result in to_coco_results(detections, image_id, category_ids)
    ]


def _example(batch: Batch, index: int, detections: Detections) -> Example:
    height, width = batch.sizes[index].tolist()
    original_height, original_width = batch.original_sizes[index].tolist()
    scale_x, scale_y = width / original_width, height / original_height
    valid = batch.targets.valid[index]
    return Example(
        image_id=int(batch.image_ids[index]),
        image=batch.images[index, :, :height, :width].contiguous(),
        detections=Detections(
            detections.boxes * detections.boxes.new_tensor([scale_x, scale_y, scale_x, scale_y]),
            detections.scores,
            detections.labels,
        ),
        gt_boxes=batch.targets.boxes[index][valid],
        gt_labels=batch.targets.labels[index][valid],
    )
