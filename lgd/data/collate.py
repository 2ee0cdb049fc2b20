"""From samples to a batch: pictures padded to one canvas, boxes and outlines to one number of slots.

Legend: B images of a batch, H x W its canvas, N object slots.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from lgd.data.canvases import Canvas, fit_canvas, tight_canvas
from lgd.data.errors import ImageError
from lgd.data.images import decode_jpegs
from lgd.data.outlines import pad_outlines
from lgd.data.samples import EncodedImage, OnBadImage, Sample, SmallImage
from lgd.data.shipping import Buffers, Shipment
from lgd.structures import Batch, Targets


@dataclass(frozen=True)
class Layout:
    """How the images of a batch lie in memory.

    Attributes:
        size_divisibility: the canvas is a multiple of so many pixels.
        canvases: the canvas is the smallest of these that holds the images; none: just as large as they need.
        channels_last: NHWC, as decoders write it, so that it is cheaper to make; or NCHW.
    """

    size_divisibility: int = 32
    canvases: Sequence[Canvas] = ()
    channels_last: bool = False


DEFAULT_LAYOUT = Layout()


@dataclass(frozen=True)
class EncodedBatch:
    """A batch on its way to the device that decodes its pictures.

    Attributes:
        pictures: of each image the file and how it is shown, or its view (3, h, w) uint8 if it is not decoded
            on the device.
        canvas: (H, W).
        channels_last: the memory layout of the images.
        rest: the batch; its `images` have no pixels yet.
    """

    pictures: tuple[EncodedImage | Tensor, ...]
    canvas: Canvas
    channels_last: bool
    rest: Batch

    def pin_memory(self) -> EncodedBatch:
        """Return a copy in page-locked memory, as far as it is copied to the device as it is."""
        return replace(self, rest=self.rest.pin_memory())

    def decode(self, device: torch.device, on_bad_image: OnBadImage = "fail") -> Batch:
        """Decode the pictures; returns the batch, its images on the device, all else where it is.

        A damaged file may be skipped: the next image of the batch then comes twice, with all that is its own.

        Raises:
            ImageError: a file is damaged and may not be skipped, or all are.
        """
        encoded = [picture for picture in self.pictures if isinstance(picture, EncodedImage)]
        decoded = iter(decode_jpegs([each.jpeg for each in encoded], device))
        pictures = [next(decoded) if isinstance(x, EncodedImage) else x for x in self.pictures]
        errors = [picture for picture in pictures if isinstance(picture, ImageError)]
        good = [i for i, picture in enumerate(pictures) if isinstance(picture, Tensor)]
        if errors and (on_bad_image == "fail" or not good):
            raise errors[0]
        taken = [min((g for g in good if g >= i), default=good[0]) for i in range(len(pictures))]
        views = []
        for i in taken:
            picture, source = pictures[i], self.pictures[i]
            assert isinstance(picture, Tensor)
            views.append(source.view(picture) if isinstance(source, EncodedImage) else picture)
        rest = _take(self.rest, taken, errors) if errors else self.rest
        memory = torch.empty(3 * len(views) * math.prod(self.canvas), dtype=torch.uint8, device=device)
        images = _as_images(memory, shape=(len(views), *self.canvas), channels_last=self.channels_last)
        _pad_images(images, views)
        return replace(rest, images=images)


def collate(
    samples: Sequence[Sample | ImageError],
    *,
    layout: Layout,
    on_bad_image: OnBadImage = "fail",
    buffers: Buffers | None = None,
) -> Batch | Shipment | EncodedBatch | ImageError:
    """Pad images, boxes and outlines to a batch.

    Args:
        samples: B of them, or errors.
        layout: of the images.
        on_bad_image: answer with the first error, or leave errors out of the batch.
        buffers: of the worker, for the images to lie in; None for new memory.

    Returns:
        The batch, as a shipment where it lies in a buffer, encoded if an image of it is, or an error where
        one stands in the way or nothing is left.
    """
    errors = [sample for sample in samples if isinstance(sample, ImageError)]
    good = [sample for sample in samples if isinstance(sample, Sample)]
    if errors and on_bad_image == "fail":
        return errors[0]
    if not good:
        return ImageError("; ".join(map(str, errors)))
    tight = tight_canvas([sample.size for sample in good], layout.size_divisibility)
    canvas = fit_canvas(tight, layout.canvases)
    batch = Batch(
        images=torch.empty(len(good), 3, 0, 0, dtype=torch.uint8),
        sizes=torch.tensor([sample.size for sample in good]),
        original_sizes=torch.tensor([sample.original_size for sample in good]),
        image_ids=torch.tensor([sample.image_id for sample in good]),
        targets=_pad_targets(good),
        skipped=tuple(map(str, errors)) + tuple(text for sample in good for text in sample.skipped),
        canvas=torch.tensor(tight) if layout.canvases else None,
    )
    if any(isinstance(sample.image, EncodedImage) for sample in good):
        pictures = tuple(x.image if isinstance(x.image, EncodedImage) else _show(x) for x in good)
        return EncodedBatch(pictures, canvas, layout.channels_last, batch)
    see_images = partial(_as_images, shape=(len(good), *canvas), channels_last=layout.channels_last)
    num_bytes = 3 * len(good) * math.prod(canvas)
    buffer = buffers.take(num_bytes) if buffers else None
    images = see_images(buffer.contents if buffer else torch.empty(num_bytes, dtype=torch.uint8))
    _pad_images(images, map(_show, good))
    return Shipment(buffer, see_images, batch) if buffer else replace(batch, images=images)


def _show(sample: Sample) -> Tensor:
    """The sample's image, (3, h, w) uint8."""
    image = sample.image
    assert not isinstance(image, EncodedImage)
    return image.show() if isinstance(image, SmallImage) else image


def _as_images(memory: Tensor, *, shape: tuple[int, int, int], channels_last: bool) -> Tensor:
    """See bytes (n,), as many as needed or more, as images (B, 3, H, W); `shape` is (B, H, W)."""
    memory = memory[: 3 * math.prod(shape)]
    num_images, *canvas = shape
    if channels_last:
        return memory.view(num_images, *canvas, 3).permute(0, 3, 1, 2)
    return memory.view(num_images, 3, *canvas)


def _pad_images(images: Tensor, views: Iterable[Tensor]) -> None:
    """Write views (3, h, w) into the top left corners of images (B, 3, H, W), and zeros beside and below."""
    for image, view in zip(images, views, strict=True):
        height, width = view.shape[1:]
        image[:, :height, :width] = view
        image[:, :height, width:] = 0
        image[:, height:] = 0


def _take(batch: Batch, images: Sequence[int], errors: Sequence[ImageError]) -> Batch:
    """The batch of these images of it, which stand for what the errors say."""
    places = torch.tensor(images)
    return replace(
        batch.map(lambda tensor: tensor[places]),
        image_ids=batch.image_ids[places],
        canvas=batch.canvas,
        skipped=batch.skipped + tuple(map(str, errors)),
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
