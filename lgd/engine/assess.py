"""Evaluate a model on its test sets: detect, score, draw."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lgd.data.index import AnnotationIndex
from lgd.distill.distiller import LabelGuidedDistiller, PlainStudent
from lgd.engine.evaluate import Example, Inference, run_inference
from lgd.evaluation.coco import Backend, Metrics
from lgd.evaluation.draw import draw_detections
from lgd.evaluation.score import score
from lgd.structures import Batch

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TestSet:
    """A set to evaluate on.

    Attributes:
        name: as the user calls it.
        index: its images and annotations.
        make_batches: opens this rank's share anew.
    """

    __test__ = False  # not a test class, whatever pytest thinks of its name

    name: str
    index: AnnotationIndex
    make_batches: Callable[[], Iterable[Batch]]


@dataclass(frozen=True)
class Assessment:
    """What an evaluation found on one test set.

    Attributes:
        test_set: the set.
        inference: detections.
        metrics: {"student": {"bbox": {"AP": percent, ...}, "segm": ...}, "teacher": ...}, as from `score`;
            None in place of the numbers where the set has no annotations.
    """

    test_set: TestSet
    inference: Inference
    metrics: dict[str, dict[str, Metrics | None]]


def assess(
    model: LabelGuidedDistiller | PlainStudent,
    test_sets: Sequence[TestSet],
    *,
    device: torch.device,
    with_teacher: bool,
    mixed_precision: bool,
    backend: Backend,
    num_examples: int,
    shall_abandon: Callable[[], bool] = lambda: False,
) -> Iterator[Assessment]:
    """Evaluate on every test set; every rank detects, rank 0 scores and yields.

    Args:
        model: in training mode before and after.
        test_sets: where to evaluate.
        device: where the model lies.
        with_teacher: evaluate the teacher too, where the model has one and the set has labels.
        mixed_precision: detect under bfloat16 autocast.
        backend: what counts the matches.
        num_examples: images to keep for drawing.
        shall_abandon: asked before every batch, see `run_inference`.

    Raises:
        Interrupted: on every rank, because one of them was asked to leave.
    """
    for test_set in test_sets:
        index = test_set.index
        teach = model.teach if isinstance(model, LabelGuidedDistiller) else None
        model.eval()
        inference = run_inference(
            model.student,
            test_set.make_batches(),
            index.category_ids,
            device=device,
            teach=teach if with_teacher and index.has_annotations else None,
            mixed_precision=mixed_precision,
            num_examples=num_examples,
            shall_abandon=shall_abandon,
        )
        model.train()
        if inference is None:
            continue
        if inference.num_skipped:
            logger.warning("%s: %d unreadable images left out", test_set.name, inference.num_skipped)
        metrics = {
            name: score(index, results, with_masks=inference.with_masks, backend=backend)
            for name, results in inference.results.items()
        }
        yield Assessment(test_set, inference, metrics)


def draw_examples(assessment: Assessment, image_format: str) -> list[Tensor]:
    """Draw ground truth beside the student's detections: (3, h, w) uint8 RGB each."""
    class_names = assessment.test_set.index.class_names
    return [_draw(example, class_names, image_format) for example in assessment.inference.examples]


def _draw(example: Example, class_names: Sequence[str], image_format: str) -> Tensor:
    image = example.image.flip(0) if image_format == "BGR" else example.image
    return draw_detections(
        image,
        example.detections,
        gt_boxes=example.gt_boxes,
        gt_labels=example.gt_labels,
        gt_outlines=example.gt_outlines,
        class_names=class_names,
    )
