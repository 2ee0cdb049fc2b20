"""Detect: a detector (and its teacher) over the batches of one test set, gathered on rank 0."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lgd.detectors.protocol import Detector
from lgd.evaluation.predictions import Predictions
from lgd.inference.collect import collect_predictions
from lgd.inference.losses import LossMeter, average_losses
from lgd.ranks import process_group
from lgd.ranks.interruption import Interrupted
from lgd.structures import Batch, Detections, Features, Outlines

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
        gt_outlines: the objects' masks, (1, G, ...), in pixels of `image`; None where the model does not ask
            for masks.
    """

    image_id: int
    image: Tensor
    detections: Detections
    gt_boxes: Tensor
    gt_labels: Tensor
    gt_outlines: Outlines | None = None


@dataclass(frozen=True)
class Inference:
    """What a pass over a test set gave.

    Attributes:
        found: detections by model ("student" and, where there are such, "teacher" and "ema", the student with
            averaged weights), of all ranks, in the order of the image ids whatever the number of ranks.
        with_masks: whether they have masks.
        examples: images to draw.
        num_skipped: unreadable images that were left out, over all ranks.
        losses: of "student" and perhaps "teacher" by name, where they were asked for.
    """

    found: dict[str, Predictions]
    with_masks: bool = False
    examples: list[Example] = field(default_factory=list)
    num_skipped: int = 0
    losses: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@torch.no_grad()
def detect(
    student: Detector,
    batches: Iterable[Batch],
    category_ids: Sequence[int],
    *,
    device: torch.device,
    teach: Teach | None = None,
    averaged: Detector | None = None,
    with_losses: bool = False,
    mixed_precision: bool = False,
    num_examples: int = 0,
    shall_abandon: Callable[[], bool] = lambda: False,
) -> Inference | None:
    """Detect on every batch of this rank; gather on rank 0.

    The student runs once: the teacher starts from its features.

    Args:
        student: the detector, in evaluation mode.
        batches: this rank's share of the test set.
        category_ids: the data set's category id of each class, by label.
        device: where the model lies.
        teach: the teacher; None evaluates the student alone.
        averaged: the student with averaged weights, which is evaluated too.
        with_losses: hold features against the labels, too, see `LossMeter`.
        mixed_precision: run under bfloat16 autocast.
        num_examples: images of rank 0 to keep for drawing.
        shall_abandon: asked before every batch; True on one rank makes all of them raise `Interrupted`.

    Returns:
        Everything on rank 0, None on the others.

    Raises:
        Interrupted: on every rank, because one of them was asked to leave.
    """
    others = {"teacher": teach, "ema": averaged}
    names = ["student", *(name for name, other in others.items() if other is not None)]
    found: dict[str, list[Predictions]] = {name: [] for name in names}
    meter = LossMeter(student) if with_losses else None
    examples: list[Example] = []
    with_masks, num_skipped, abandons = False, 0, False
    for host_batch in batches:
        abandons = shall_abandon()
        if abandons:
            break
        num_skipped += len(host_batch.skipped)
        batch = host_batch.to(device, non_blocking=True)
        with _without_trials(), torch.autocast(device.type, torch.bfloat16, enabled=mixed_precision):
            detections = dict(_detect_batch(student, teach, averaged, batch, meter))
        for name in names:
            found[name].append(collect_predictions(detections[name], host_batch, category_ids))
        with_masks |= any(each.masks is not None for each in detections["student"])
        wanted = num_examples - len(examples) if process_group.is_main() else 0
        examples += [
            _example(host_batch, i, each) for i, each in enumerate(detections["student"][: max(wanted, 0)])
        ]
    if process_group.any_rank(abandons, device):
        raise Interrupted("asked to leave: the evaluation is abandoned")
    mine = {name: Predictions.join(parts) for name, parts in found.items()}
    losses = meter.read() if meter is not None else {}
    ranks = process_group.gather_objects((mine, with_masks, num_skipped, losses))
    if ranks is None:
        return None
    return Inference(
        found={name: Predictions.join([part[name] for part, *_ in ranks]).sort_by_image() for name in names},
        with_masks=any(with_masks for _, with_masks, *_ in ranks),
        examples=examples,
        num_skipped=sum(skipped for _, _, skipped, _ in ranks),
        losses=average_losses(losses for *_, losses in ranks),
    )


@contextmanager
def _without_trials() -> Iterator[None]:
    """Keep cuDNN from trying algorithms out: a test set has many shapes, and each comes a few times."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def _detect_batch(
    student: Detector,
    teach: Teach | None,
    averaged: Detector | None,
    batch: Batch,
    meter: LossMeter | None,
) -> Iterator[tuple[str, list[Detections]]]:
    """Yield the student's detections, then the teacher's, then those with averaged weights."""
    pyramids = {"student": student.extract_features(batch)}
    if teach is not None:
        pyramids["teacher"] = teach(pyramids["student"], batch)
    for name, features in pyramids.items():
        yield name, student.detect(features, batch)
    if meter is not None:
        meter.add(pyramids, batch)
    if averaged is not None:
        yield "ema", averaged.detect(averaged.extract_features(batch), batch)


def _example(batch: Batch, index: int, detections: Detections) -> Example:
    height, width = batch.sizes[index].tolist()
    original_height, original_width = batch.original_sizes[index].tolist()
    scale_x, scale_y = width / original_width, height / original_height
    targets, detections = batch.targets, detections.to("cpu")
    valid, outlines = targets.valid[index], targets.outlines
    return Example(
        image_id=int(batch.image_ids[index]),
        image=batch.images[index, :, :height, :width].contiguous(),
        detections=replace(
            detections,
            boxes=detections.boxes * detections.boxes.new_tensor([scale_x, scale_y, scale_x, scale_y]),
        ),
        gt_boxes=targets.boxes[index][valid],
        gt_labels=targets.labels[index][valid],
        gt_outlines=outlines and _select(outlines, index, valid),
    )


def _select(outlines: Outlines, index: int, valid: Tensor) -> Outlines:
    """The outlines of one image's objects, without the unused slots."""
    edges, parts = outlines.edges[index][valid][None], outlines.parts[index][valid][None]
    return Outlines(edges, parts, outlines.num_parts)
