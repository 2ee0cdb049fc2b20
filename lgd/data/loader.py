# ruff: noqa: PT028 (test_loader is no test)
"""Batches for training and testing: files read, resized and padded in worker processes, shipped as uint8.

Legend: B images of a batch, H x W its canvas, N object slots, G boxes of an image.
"""

from __future__ import annotations

import atexit
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from lgd.data.collate import DEFAULT_LAYOUT, EncodedBatch, Layout, collate
from lgd.data.decoding import DEFAULT_DECODING, Decoding
from lgd.data.errors import DataError, ImageError
from lgd.data.index import AnnotationIndex, Floats, Integers
from lgd.data.outlines import require_masks
from lgd.data.samplers import (
    MicroBatchSampler,
    TrainingSampler,
    aspect_groups,
    evaluation_batches,
    repeat_factors,
    weigh_parts,
)
from lgd.data.samples import Augmentation, OnBadImage, Preparation, TestImages, TrainingImages
from lgd.data.shipping import Buffers, Shipment
from lgd.data.transforms import Crop, ImageFormat, Resize, resized_size
from lgd.data.workers import Failure, WholeBatches, WorkerContext, keep, prepare_worker
from lgd.structures import Batch
from lgd.words import counted

logger = logging.getLogger(__name__)


class BatchLoader(Iterable[Batch]):
    """The batches of a `DataLoader`, with unfit images raised or logged in this process.

    Its workers live as long as an iterator over it: a training's all the time, an evaluation's until it is
    over, so that none wait idly between two.
    """

    def __init__(
        self,
        loader: DataLoader[Any],
        num_batches: int | None,
        on_bad_image: OnBadImage,
        decode: Callable[[EncodedBatch], Batch] | None = None,
    ) -> None:
        """Wrap `loader`; `num_batches` is None where it has no end, `decode` what finishes encoded ones."""
        self._loader = loader
        self._num_batches = num_batches
        self._on_bad_image = on_bad_image
        self._decode = decode

    def __iter__(self) -> Iterator[Batch]:
        """Go through the batches.

        Raises:
            ImageError: an unfit image, unless these are skipped.
            LoadingError: a worker failed or is gone.
        """
        for item in _until_exit(self._loader):
            if isinstance(item, Batch):
                yield item
            elif isinstance(item, Shipment):
                yield item.unload()
            elif isinstance(item, EncodedBatch):
                assert self._decode is not None
                yield self._decode(item)
            elif isinstance(item, Failure):
                raise item.error()
            elif isinstance(item, ImageError) and self._on_bad_image == "skip":
                logger.warning("skipped a batch: %s", item)
            else:
                raise item

    def __len__(self) -> int:
        """Return the number of batches of this rank; TypeError where there is no end."""
        if self._num_batches is None:
            raise TypeError("training batches have no end")
        return self._num_batches


def _until_exit(loader: DataLoader[Any]) -> Iterator[Any]:
    """Go through the loader; its workers are gone before the interpreter waits for them.

    An interpreter that ends sends its children SIGTERM, which ours ignore.
    """
    context = loader.multiprocessing_context
    if not isinstance(context, WorkerContext):
        yield from loader
        return
    with context.starting():
        iterators = [iter(loader)]
    atexit.register(iterators.clear)
    try:
        while (item := _next(iterators[0], context)) is not None:
            yield item
    finally:
        iterators.clear()
        atexit.unregister(iterators.clear)


def _next(iterator: Iterator[Any], context: WorkerContext) -> Any:
    """The next item; None after the last."""
    try:
        return next(iterator, None)
    except Exception as error:
        raise context.explain(error) from error


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
    augmentations: Sequence[Augmentation] = (),
    num_workers: int,
    on_bad_image: OnBadImage = "fail",
    filter_empty: bool = True,
    aspect_ratio_grouping: bool = True,
    repeat_threshold: float = 0.0,
    weights: Sequence[float] = (),
    layout: Layout = DEFAULT_LAYOUT,
    decoding: Decoding = DEFAULT_DECODING,
    decode_on: torch.device | None = None,
    pin_memory: bool = False,
    dtype: torch.dtype = torch.float32,
    with_masks: bool = False,
) -> BatchLoader:
    """Make the endless training batches of one rank, which hang on the arguments, not on workers or ranks.

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
        augmentations: what is done to samples after that, in turn.
        num_workers: loading processes; 0 loads in this one.
        on_bad_image: raise `ImageError` at an unfit image, or replace it and say so in `Batch.skipped`.
        filter_empty: leave out images without any object that is not a crowd.
        aspect_ratio_grouping: batch images wider than high apart from the others.
        repeat_threshold: classes in a smaller share of the images come more often (`repeat_factors`).
        weights: shares in which images are drawn from the sets that `index` is joined of; none: all alike.
        layout: of the images in memory.
        decoding: how files become pixels.
        decode_on: a device, where `Batch.images` then are, for JPEGs to be decoded on; None: in the workers.
        pin_memory: put the batches into page-locked memory.
        dtype: of the boxes and outlines.
        with_masks: whether the targets have outlines.

    Raises:
        DataError: no image (of a set with a weight) has an object, or one has no mask and shall have one.
        ValueError: sizes that cannot be; augmentations of what is decoded elsewhere.
    """
    images = _training_images(index, filter_empty, with_masks)
    groups, repeats = _order(index, images, aspect_ratio_grouping, repeat_threshold, weights)
    global_size = batch_size * world_size * num_accumulation_steps
    sampler = TrainingSampler(images, groups, global_batch_size=global_size, seed=seed, repeats=repeats)
    dataset = TrainingImages(
        Preparation(index, image_format, max_size, dtype, with_masks, decode_on is None, decoding),
        candidates=images,
        resize=Resize(tuple(min_sizes), max_size, min_size_sampling),
        crop=crop,
        flip_prob=flip_prob,
        seed=seed,
        on_bad_image=on_bad_image,
        augmentations=augmentations,
    )
    batches = MicroBatchSampler(sampler, world_size, rank, num_accumulation_steps, start)
    loader = _data_loader(dataset, batches, partial(collate, layout=layout), num_workers, pin_memory)
    return BatchLoader(loader, None, "fail", _decoder(decode_on, on_bad_image))  # unfit ones were replaced


def test_loader(
    index: AnnotationIndex,
    *,
    image_format: ImageFormat = "BGR",
    batch_size: int,
    world_size: int,
    rank: int,
    min_size: int,
    max_size: int,
    num_workers: int,
    on_bad_image: OnBadImage = "fail",
    layout: Layout = DEFAULT_LAYOUT,
    decoding: Decoding = DEFAULT_DECODING,
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
    divisor = layout.size_divisibility
    canvases = -(-np.array(sizes, dtype=np.int64).reshape(-1, 2) // divisor) * divisor
    batches = evaluation_batches(canvases, batch_size=batch_size, num_ranks=world_size, rank=rank)
    prepare = Preparation(index, image_format, max_size, dtype, with_masks, decoding=decoding)
    dataset = TestImages(prepare, min_size=min_size)
    pad = partial(collate, layout=layout, on_bad_image=on_bad_image)
    loader = _data_loader(dataset, batches, pad, num_workers, pin_memory)
    return BatchLoader(loader, len(batches), on_bad_image)


test_loader.__test__ = False  # type: ignore[attr-defined]


def _decoder(device: torch.device | None, on_bad_image: OnBadImage) -> Callable[[EncodedBatch], Batch] | None:
    """What decodes on the device; None where all is decoded already."""
    return partial(EncodedBatch.decode, device=device, on_bad_image=on_bad_image) if device else None


def _training_images(index: AnnotationIndex, filter_empty: bool, with_masks: bool) -> Integers:
    """The images to train on."""
    if with_masks:
        require_masks(index)
    if not filter_empty:
        return np.arange(len(index))
    images = np.flatnonzero(index.counts)
    if len(images) == 0:
        raise DataError(f"{index.name}: none of its {counted(len(index), 'image')} has an object to train on")
    logger.info(
        "%s: %d of %s objects to train on",
        index.name,
        len(images),
        counted(len(index), "image has", "images have"),
    )
    return images


def _groups(index: AnnotationIndex, images: Integers, by_aspect_ratio: bool) -> Integers:
    """Which of `images` may share a batch: those of the same number."""
    groups = aspect_groups(index.heights[images], index.widths[images])
    return groups if by_aspect_ratio else np.zeros_like(groups)


def _order(
    index: AnnotationIndex, images: Integers, grouping: bool, threshold: float, weights: Sequence[float]
) -> tuple[Integers, Floats | None]:
    """Of each image, which it is batched with, and how often it comes."""
    return _groups(index, images, grouping), _repeats(index, images, threshold, weights)


def _repeats(
    index: AnnotationIndex, images: Integers, threshold: float, weights: Sequence[float]
) -> Floats | None:
    """How often each of `images` comes in an epoch; None where each comes once."""
    repeats = np.ones(len(images))
    if threshold:
        image_of = np.repeat(np.arange(len(index)), np.diff(index.columns["annotation_offsets"]))
        used = np.isin(image_of, images) & index.columns["usable"] & ~index.columns["crowd"]
        place, labels = np.searchsorted(images, image_of[used]), index.columns["labels"][used]
        repeats = repeat_factors(place, labels, num_images=len(images), threshold=threshold)
    if weights:
        repeats = weigh_parts(repeats, _parts(index, images, len(weights)), np.array(weights))
    return repeats if threshold or weights else None


def _parts(index: AnnotationIndex, images: Integers, num_weights: int) -> Integers:
    """Which of the joined sets each of `images` is of, where each has a weight."""
    bounds = index.columns["part_offsets"]
    if num_weights != len(bounds) - 1:
        raise ValueError(
            f"{index.name}: {counted(len(bounds) - 1, 'data set')} and {counted(num_weights, 'weight')}"
        )
    parts = np.searchsorted(bounds, images, side="right") - 1
    empty = np.flatnonzero(np.bincount(parts, minlength=num_weights) == 0).tolist()
    if empty:
        source = index.sources[empty[0]]
        raise DataError(f"{source.json_path} has a weight, but no image with an object to train on")
    return parts


def _data_loader(
    dataset: Dataset[Any],
    batches: Iterable[list[Any]],
    pad: Callable[..., Any],
    num_workers: int,
    pin_memory: bool,
) -> DataLoader[Any]:
    if num_workers:
        dataset, pad = WholeBatches(dataset, partial(pad, buffers=Buffers())), keep
    return DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=pad,
        num_workers=num_workers,
        pin_memory=pin_memory,
        worker_init_fn=prepare_worker,
        multiprocessing_context=WorkerContext() if num_workers else None,
        # A generator of its own: every new iterator would advance the default one, and change what follows.
        generator=torch.Generator().manual_seed(0),
    )
