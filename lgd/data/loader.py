# ruff: noqa: PT028 (test_loader is no test)
"""Batches for training and testing: files read, resized and padded in worker processes, shipped as uint8.

Legend: B images of a batch, H x W its canvas, N object slots, G boxes of an image.
"""

from __future__ import annotations

import gc
import logging
import signal
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from lgd.data.errors import DataError, ImageError
from lgd.data.index import AnnotationIndex, Floats, Integers
from lgd.data.outlines import pad_outlines, require_masks
from lgd.data.samplers import (
    MicroBatchSampler,
    TrainingSampler,
    aspect_groups,
    evaluation_batches,
    repeat_factors,
)
from lgd.data.samples import OnBadImage, Preparation, Sample, TestImages, TrainingImages
from lgd.data.transforms import Crop, ImageFormat, Resize, resized_size
from lgd.structures import Batch, Targets

logger = logging.getLogger(__name__)


class BatchLoader(Iterable[Batch]):
    """The batches of a `DataLoader`, with unfit images raised or logged in this process."""

    def __init__(self, loader: DataLoader[Any], num_batches: int | None, on_bad_image: OnBadImage) -> None:
        """Wrap `loader`; `num_batches` is None where it has no end."""
        self._loader = loader
        self._num_batches = num_batches
        self._on_bad_image = on_bad_image

    def __iter__(self) -> Iterator[Batch]:
        """Go through the batches; raises `ImageError` at an unfit image unless these are skipped."""
        for item in self._loader:
            if isinstance(item, Batch):
                yield item
            elif self._on_bad_image == "fail":
                raise item
            else:
                logger.warning("skipped a batch: %s", item)

    def __len__(self) -> int:
        """Return the number of batches of this rank; TypeError where there is no end."""
        if self._num_batches is None:
            raise TypeError("training batches have no end")
        return self._num_batches


def train_loader(
    index: AnnotationIndex,
    *,
    image_format: ImageFormat = "BGR",
    batch_size: int,
    num_accumulation_steps: int = 1,
    world_size: int,
    rank: int,
    seed: int,
    start: int = 0,
    min_sizes: Sequence[int],
    min_size_sampling: Literal["choice", "range"] = "choice",
    max_size: int,
    flip_prob: float = 0.5,
    crop: Crop | None = None,
    size_divisibility: int = 32,
    num_workers: int,
    on_bad_image: OnBadImage = "fail",
    filter_empty: bool = True,
    aspect_ratio_grouping: bool = True,
    repeat_threshold: float = 0.0,
    pin_memory: bool = False,
    dtype: torch.dtype = torch.float32,
    with_masks: bool = False,
) -> BatchLoader:
    """Make the endless training batches of one rank.

    What batch k holds depends on the arguments alone: not on the number of workers, on the batches before it,
    or on how the global batch of batch_size * world_size * num_accumulation_steps images is shared out.

    Args:
        index: the data set.
        image_format: order of the channels of `Batch.images`.
        batch_size: images of a rank's micro-batch.
        num_accumulation_steps: micro-batches of a rank between two optimizer steps.
        world_size: ranks.
        rank: this one.
        seed: of order and augmentation, at least 0.
        start: the first micro-batch, counted from the beginning of training; for resuming.
        min_sizes: lengths of the short side, pixels.
        min_size_sampling: take one of `min_sizes`, or any length between its two.
        max_size: cap on the long side, pixels.
        flip_prob: share of images that are mirrored left to right.
        crop: take a random part of each image before it is resized; a part may have no object.
        size_divisibility: the canvas is a multiple of so many pixels.
        num_workers: loading processes; 0 loads in this one.
        on_bad_image: raise `ImageError` at an unfit image, or replace it and say so in `Batch.skipped`.
        filter_empty: leave out images without any object that is not a crowd.
        aspect_ratio_grouping: batch images wider than high apart from the others.
        repeat_threshold: classes in a smaller share of the images come more often (`repeat_factors`).
        pin_memory: put the batches into page-locked memory.
        dtype: of the boxes and outlines.
        with_masks: whether the targets have outlines.

    Raises:
        DataError: no image has an object, or an object has no mask and shall have one.
        ValueError: sizes that cannot be.
    """
    if with_masks:
        require_masks(index)
    images = _training_images(index, filter_empty)
    groups = _groups(index, images, aspect_ratio_grouping)
    repeats = _repeats(index, images, repeat_threshold) if repeat_threshold else None
    global_size = batch_size * world_size * num_accumulation_steps
    sampler = TrainingSampler(images, groups, global_batch_size=global_size, seed=seed, repeats=repeats)
    dataset = TrainingImages(
        Preparation(index, image_format, max_size, dtype, with_masks),
        candidates=images,
        resize=Resize(tuple(min_sizes), max_size, min_size_sampling),
        crop=crop,
        flip_prob=flip_prob,
        seed=seed,
        on_bad_image=on_bad_image,
    )
    batches = MicroBatchSampler(sampler, world_size, rank, num_accumulation_steps, start)
    # Unfit images have been replaced where they may be: an error that is left is one to stop at.
    loader = _data_loader(dataset, batches, size_divisibility, "fail", num_workers, pin_memory)
    return BatchLoader(loader, None, "fail")


def test_loader(
    index: AnnotationIndex,
    *,
    image_format: ImageFormat = "BGR",
    batch_size: int,
    world_size: int,
    rank: int,
    min_size: int,
    max_size: int,
    size_divisibility: int = 32,
    num_workers: int,
    on_bad_image: OnBadImage = "fail",
    pin_memory: bool = False,
    dtype: torch.dtype = torch.float32,
    with_masks: bool = False,
) -> BatchLoader:
    """Make the test batches of one rank: over all ranks every image once, images without objects included.

    Images share a batch only where their canvases are equal, so that batching adds no padding. A rank may
    have no batch at all. An unfit image that is skipped is missing from its batch and named in
    `Batch.skipped`. Arguments and errors as in `train_loader`.
    """
    if with_masks:
        require_masks(index)
    sizes = [
        resized_size(h, w, min_size, max_size)
        for h, w in zip(index.heights.tolist(), index.widths.tolist(), strict=True)
    ]
    canvases = -(-np.array(sizes, dtype=np.int64).reshape(-1, 2) // size_divisibility) * size_divisibility
    batches = evaluation_batches(canvases, batch_size=batch_size, num_ranks=world_size, rank=rank)
    dataset = TestImages(Preparation(index, image_format, max_size, dtype, with_masks), min_size=min_size)
    loader = _data_loader(dataset, batches, size_divisibility, on_bad_image, num_workers, pin_memory)
    return BatchLoader(loader, len(batches), on_bad_image)


test_loader.__test__ = False  # type: ignore[attr-defined]


def collate(
    samples: Sequence[Sample | ImageError], *, size_divisibility: int, on_bad_image: OnBadImage = "fail"
) -> Batch | ImageError:
    """Pad images, boxes and outlines to a batch.

    Args:
        samples: B of them, or errors.
        size_divisibility: the canvas is a multiple of so many pixels.
        on_bad_image: answer with the first error, or leave errors out of the batch.

    Returns:
        The batch, or an error where one stands in the way or nothing is left.
    """
    errors = [sample for sample in samples if isinstance(sample, ImageError)]
    good = [sample for sample in samples if isinstance(sample, Sample)]
    if errors and on_bad_image == "fail":
        return errors[0]
    if not good:
        return ImageError("; ".join(map(str, errors)))
    sizes = torch.tensor([sample.image.shape[1:] for sample in good])
    height, width = (-(-sizes.amax(dim=0) // size_divisibility) * size_divisibility).tolist()
    images = torch.zeros(len(good), 3, height, width, dtype=torch.uint8)
    for canvas, sample in zip(images, good, strict=True):
        canvas[:, : sample.image.shape[1], : sample.image.shape[2]] = sample.image
    return Batch(
        images=images,
        sizes=sizes,
        original_sizes=torch.tensor([sample.original_size for sample in good]),
        image_ids=torch.tensor([sample.image_id for sample in good]),
        targets=_pad_targets(good),
        skipped=tuple(map(str, errors)) + tuple(text for sample in good for text in sample.skipped),
    )


def _pad_targets(samples: Sequence[Sample]) -> Targets:
    num_slots = max(1, *(len(sample.labels) for sample in samples))
    boxes = samples[0].boxes.new_zeros(len(samples), num_slots, 4)
    labels = torch.zeros(len(samples), num_slots, dtype=torch.int64)
    valid = torch.zeros(len(samples), num_slots, dtype=torch.bool)
    for b, sample in enumerate(samples):
        count = len(sample.labels)
        boxes[b, :count], labels[b, :count], valid[b, :count] = sample.boxes, sample.labels, True
    outlines = [sample.outlines for sample in samples if sample.outlines is not None]
    padded = pad_outlines(outlines, num_slots, boxes.dtype) if len(outlines) == len(samples) else None
    return Targets(boxes, labels, valid, padded)


def _training_images(index: AnnotationIndex, filter_empty: bool) -> Integers:
    """The images to train on."""
    if not filter_empty:
        return np.arange(len(index))
    images = np.flatnonzero(index.counts)
    if len(images) == 0:
        raise DataError(f"{index.name}: none of its {len(index)} images has an object to train on")
    logger.info("%s: %d of %d images have objects to train on", index.name, len(images), len(index))
    return images


def _groups(index: AnnotationIndex, images: Integers, by_aspect_ratio: bool) -> Integers:
    """Which of `images` may share a batch: those of the same number."""
    groups = aspect_groups(index.heights[images], index.widths[images])
    return groups if by_aspect_ratio else np.zeros_like(groups)


def _repeats(index: AnnotationIndex, images: Integers, threshold: float) -> Floats:
    """How often each of `images` comes for once of the others."""
    image_of = np.repeat(np.arange(len(index)), np.diff(index.columns["annotation_offsets"]))
    used = np.isin(image_of, images) & ~index.columns["crowd"]
    place = np.searchsorted(images, image_of[used])
    return repeat_factors(place, index.columns["labels"][used], num_images=len(images), threshold=threshold)


def _data_loader(
    dataset: Dataset[Any],
    batches: Iterable[list[Any]],
    size_divisibility: int,
    on_bad_image: OnBadImage,
    num_workers: int,
    pin_memory: bool,
) -> DataLoader[Any]:
    return DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=partial(collate, size_divisibility=size_divisibility, on_bad_image=on_bad_image),
        num_workers=num_workers,
        pin_memory=pin_memory,
        worker_init_fn=_prepare_worker,
        # A generator of its own: every new iterator would advance the default one, and change what follows.
        generator=torch.Generator().manual_seed(0),
    )


def _prepare_worker(worker: int) -> None:
    """Leave signals to the trainer, which ends its workers itself; a worker notices when the trainer is gone.

    A scheduler that takes the machine back signals every process. A worker that died of it would take the
    trainer with it before this has saved its checkpoint. The trainer's objects are kept out of the worker's
    garbage collections, which would write to them, and so copy the pages that the processes share.
    """
    gc.freeze()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
