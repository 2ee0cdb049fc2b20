"""Detect on every test set of a run, and draw examples of what was found."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import torch
from torch import Tensor

from lgd.data.index import AnnotationIndex
from lgd.distill.distiller import LabelGuidedDistiller, PlainStudent
from lgd.inference.detect import Example, Inference, detect
from lgd.inference.draw import draw_detections
from lgd.layers.prediction import for_prediction
from lgd.notices import follow
from lgd.ranks import process_group
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


def detect_on_test_sets(
    model: LabelGuidedDistiller | PlainStudent,
    test_sets: Sequence[TestSet],
    *,
    device: torch.device,
    with_teacher: bool,
    averages: Mapping[str, Tensor] | None = None,
    with_losses: bool = False,
    mixed_precision: bool,
    num_examples: int,
    shall_abandon: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[TestSet, Inference]]:
    """Detect on every test set, all ranks together; rank 0 yields what was found.

    Args:
        model: in training mode before and after.
        test_sets: where to evaluate.
        device: where the model lies.
        with_teacher: detect with the teacher too, where the model has one and the set has labels.
        averages: other weights of the student by name, with which it is evaluated too.
        with_losses: see `detect`; where the set has labels.
        mixed_precision: detect under bfloat16 autocast.
        num_examples: images to keep for drawing.
        shall_abandon: asked before every batch, see `detect`.

    Raises:
        Interrupted: on every rank, because one of them was asked to leave.
    """
    for test_set in test_sets:
        index = test_set.index
        teach = model.teach if isinstance(model, LabelGuidedDistiller) else None
        model.eval()
        with closing(follow_batches(test_set.make_batches(), index)) as batches:
            inference = detect(
                for_prediction(model.student),
                batches,
                index.category_ids,
                device=device,
                teach=teach if with_teacher and index.has_annotations else None,
                averaged=None if averages is None else for_prediction(model.student, averages),
                with_losses=with_losses and index.has_annotations,
                mixed_precision=mixed_precision,
                num_examples=num_examples,
                shall_abandon=shall_abandon,
            )
        model.train()
        if inference is None:
            continue
        if inference.num_skipped:
            logger.warning("%s: %d unreadable images left out", test_set.name, inference.num_skipped)
        yield test_set, inference


def follow_batches(batches: Iterable[Batch], index: AnnotationIndex) -> Generator[Batch]:
    """Go through this rank's batches; rank 0 gives notice of it, as if the others were as far."""
    num_ranks = process_group.get_world_size()
    yield from follow(
        batches,
        f"evaluating on {index.name}",
        len(index),
        count=lambda batch: num_ranks * (len(batch.image_ids) + len(batch.skipped)),
        shown=process_group.is_main(),
    )


def draw_examples(test_set: TestSet, inference: Inference, image_format: str) -> list[Tensor]:
    """Draw ground truth beside the student's detections: (3, h, w) uint8 RGB each."""
    return [_draw(example, test_set.index.class_names, image_format) for example in inference.examples]


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
