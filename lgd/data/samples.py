"""Single images, ready to be padded into a batch: read, cropped, resized, flipped, with boxes and masks.

Legend: h x w the resized image, G its boxes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Literal, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lgd.data.decoding import DEFAULT_DECODING, LARGE, Decoding
from lgd.data.errors import ImageError
from lgd.data.images import Jpeg, Picture, is_turned, read_jpeg_or_picture, read_picture
from lgd.data.index import AnnotationIndex, Integers
from lgd.data.outlines import ImageOutlines, read_outlines, select_outlines
from lgd.data.picture_cache import read_cached
from lgd.data.transforms import Crop, ImageFormat, Resize, View, Window, resized_size

OnBadImage = Literal["fail", "skip"]

# Streams of random numbers beside the sampler's, which are (seed, 0 to 2, ...).
_AUGMENTATION = 3
_REPLACEMENT = 4
_POLICY = 5

_MAX_REPLACEMENTS = 20


@dataclass(frozen=True)
class EncodedImage:
    """An image that is not decoded yet, and what the model shall see of it."""

    jpeg: Jpeg
    view: View


@dataclass(frozen=True)
class SmallImage:
    """A decoded image, (3, H, W) uint8 RGB, and its view, which is made when needed.

    It has no more pixels than the view, or the view may change yet.
    """

    pixels: Tensor
    view: View
    reduction: int = 1

    def show(self) -> Tensor:
        """Make the view, (3, h, w) uint8."""
        return self.view(self.pixels, self.reduction)


@dataclass(frozen=True)
class Sample:
    """One image, ready to be padded into a batch.

    Attributes:
        image: (3, h, w) uint8, or what it is to be made of.
        boxes: (G, 4) xyxy, pixels of `image`, clipped to it, none empty, no crowds.
        labels: (G,) int64.
        original_size: (height, width) of the file's picture, upright.
        image_id: of the annotation file.
        skipped: messages of unreadable images that this one stands for.
        outlines: the masks of the G objects, pixels of `image`, not clipped to it; None where not asked for.
    """

    image: Tensor | SmallImage | EncodedImage
    boxes: Tensor
    labels: Tensor
    original_size: tuple[int, int]
    image_id: int
    skipped: tuple[str, ...] = ()
    outlines: ImageOutlines | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(h, w)."""
        if isinstance(self.image, Tensor):
            return self.image.shape[1], self.image.shape[2]
        return self.image.view.size


class Augmentation(Protocol):
    """What is done to some samples after they are read.

    Attributes:
        probability: share of the samples that it is done to.
        needs_others: whether it takes other samples.
        enlarges: whether it may show a picture larger than its view, so that it is not decoded smaller.
    """

    needs_others: ClassVar[bool]

    @property
    def probability(self) -> float:
        """See above."""

    @property
    def enlarges(self) -> bool:
        """See above."""

    def __call__(self, sample: Sample, generator: np.random.Generator, draw: Callable[[], Sample]) -> Sample:
        """Return the sample changed.

        Args:
            sample: its boxes are float64, it has outlines, and its image is decoded.
            generator: of all chance.
            draw: gives another sample; raises ImageError where it is unfit.
        """


@dataclass(frozen=True)
class Preparation:
    """From image `i` of an index to a `Sample`.

    Attributes:
        index: the data set.
        image_format: order of the channels that the model sees.
        max_size: cap on the long side, pixels.
        dtype: of the boxes.
        with_masks: whether samples have outlines.
        decodes: whether images are decoded; if not, JPEGs stay as they are wherever another decoder gives the
            same picture.
        decoding: how.
        may_change: whether views may change yet, and so are not made.
    """

    index: AnnotationIndex
    image_format: ImageFormat
    max_size: int
    dtype: torch.dtype
    with_masks: bool = False
    decodes: bool = True
    decoding: Decoding = DEFAULT_DECODING
    may_change: bool = False

    def __call__(self, i: int, *, min_size: int, flip: bool, window: Window | None = None) -> Sample:
        """Read image `i`, take the part in `window`, resize and flip it.

        Objects that lie outside the window are left out, and what reaches out of it is clipped.

        Raises:
            ImageError: the file is unfit.
        """
        record = self.index.image(i)
        original_size = (record.height, record.width)
        window = window or Window(0, 0, *original_size)
        size = resized_size(window.height, window.width, min_size, self.max_size)
        view = View(window, size, flip, self.image_format)
        image = self._read(i, view)
        self._check_size(i, (image.height, image.width))
        keep = ~self.index.crowd(i)
        boxes, has_extent = view.boxes(self.index.boxes(i)[keep])
        keep[keep] = has_extent  # now of all annotations, crowds included
        return Sample(
            image=_see(image, view, self.may_change),
            boxes=torch.from_numpy(boxes[has_extent]).to(self.dtype),
            labels=torch.from_numpy(self.index.labels(i)[keep]),
            original_size=original_size,
            image_id=int(self.index.image_ids[i]),
            outlines=self._outlines(i, torch.from_numpy(keep), view) if self.with_masks else None,
        )

    def _read(self, i: int, view: View) -> Jpeg | Picture:
        path, decoding = self.index.path(i), self.decoding
        if not self.decodes:
            return read_jpeg_or_picture(path, decoding.value_range)
        record = self.index.image(i)
        reduction = decoding.reduction(record.height, record.width, view.reduction)
        if decoding.cache_dir is None or record.height * record.width < LARGE:
            return read_picture(path, decoding.value_range, reduction)
        return read_cached(decoding.cache_dir, path, decoding.value_range, reduction)

    def _outlines(self, i: int, keep: Tensor, view: View) -> ImageOutlines:
        outlines = select_outlines(read_outlines(self.index, i), keep)
        return replace(outlines, edges=view.edges(outlines.edges))

    def _check_size(self, i: int, size: tuple[int, int]) -> None:
        record = self.index.image(i)
        if size != (record.height, record.width):
            path, source = self.index.path(i), self.index.source(i)
            why = "so its boxes cannot be right"
            if size == (record.width, record.height) and is_turned(path):
                why = (
                    "which it is before its EXIF orientation turns it: the annotations were made on the "
                    "picture as it is stored; turn them as well, or remove the orientation from the file"
                )
            raise ImageError(
                f"image {path} (id {record.id}) is {size[1]} x {size[0]} pixels, but {source.json_path} says "
                f"{record.width} x {record.height}, {why}"
            )


def _see(image: Picture | Jpeg, view: View, may_change: bool) -> Tensor | SmallImage | EncodedImage:
    """The view of the image if it is the smaller one and stays; else both."""
    if isinstance(image, Jpeg):
        return EncodedImage(image, view)
    if may_change:
        return SmallImage(image.pixels, view, image.reduction)
    return SmallImage(image.pixels, view) if view.enlarges else view(image.pixels, image.reduction)


def _before(augmentations: Sequence[Augmentation], prepare: Preparation) -> Preparation:
    """How samples are read that augmentations then change: exactly, and with all that is known of them."""
    decoding = prepare.decoding
    if any(each.enlarges for each in augmentations):
        decoding = replace(decoding, scaled=False)
    return replace(prepare, dtype=torch.float64, with_masks=True, decoding=decoding, may_change=True)


class TrainingImages(Dataset[Sample | ImageError]):
    """Augmented training images by (image, position); the position decides the augmentation.

    An unfit image comes back as the error, not as an exception, which would lose its kind on the way from a
    worker.
    """

    def __init__(
        self,
        prepare: Preparation,
        *,
        candidates: Integers,
        resize: Resize,
        crop: Crop | None,
        flip_prob: float,
        seed: int,
        on_bad_image: OnBadImage,
        augmentations: Sequence[Augmentation] = (),
    ) -> None:
        """Take the parts.

        `candidates` are the images that may stand for an unfit one, and that augmentations may take.

        Raises:
            ValueError: augmentations of images that are decoded elsewhere.
        """
        if augmentations and not prepare.decodes:
            raise ValueError("augmentations need decoded images; leave decode_on out")
        self._prepare = _before(augmentations, prepare) if augmentations else prepare
        self._dtype, self._with_masks = prepare.dtype, prepare.with_masks
        self._candidates = candidates
        self._resize = resize
        self._crop = crop
        self._flip_prob = flip_prob
        self._seed = seed
        self._on_bad_image = on_bad_image
        self._augmentations = augmentations

    def __getitem__(self, key: tuple[int, int]) -> Sample | ImageError:
        """Return the sample at the position, or why there is none."""
        image, position = key
        generator = np.random.default_rng((self._seed, _AUGMENTATION, position))
        try:
            sample = self._load(image, generator, position)
            return self._augment(sample, position) if self._augmentations else sample
        except ImageError as error:
            return error

    def _augment(self, sample: Sample, position: int) -> Sample:
        """Do in turn what chance says."""
        generator = np.random.default_rng((self._seed, _POLICY, position))
        skipped = list(sample.skipped)

        def draw(before: Sequence[Augmentation]) -> Sample:
            """Another sample, as far as the list went, but for what takes others itself."""
            image = int(self._candidates[generator.integers(len(self._candidates))])
            other = self._load(image, generator, position)
            skipped.extend(other.skipped)
            return self._apply([each for each in before if not each.needs_others], other, generator, draw)

        sample = self._apply(self._augmentations, sample, generator, draw)
        image = sample.image
        if isinstance(image, SmallImage) and not image.view.enlarges:
            image = image.show()  # nothing was done to it; a batch of whole photographs would be large
        return replace(
            sample,
            image=image,
            boxes=sample.boxes.to(self._dtype),
            outlines=sample.outlines if self._with_masks else None,
            skipped=tuple(skipped),
        )

    def _apply(
        self,
        augmentations: Sequence[Augmentation],
        sample: Sample,
        generator: np.random.Generator,
        draw: Callable[[Sequence[Augmentation]], Sample],
    ) -> Sample:
        for number, augmentation in enumerate(augmentations):
            if generator.random() < augmentation.probability:
                sample = augmentation(sample, generator, partial(draw, augmentations[:number]))
        return sample

    def _load(self, image: int, generator: np.random.Generator, position: int) -> Sample:
        """Read an image, or one in its place where it is unfit and may be skipped."""
        min_size = self._resize.draw(generator)
        flip = bool(generator.random() < self._flip_prob)
        failures: dict[int, str] = {}
        while image not in failures and len(failures) < _MAX_REPLACEMENTS:
            try:
                window = self._draw_window(generator, image)
                sample = self._prepare(image, min_size=min_size, flip=flip, window=window)
                return replace(sample, skipped=tuple(failures.values()))
            except ImageError as error:
                if self._on_bad_image == "fail":
                    raise
                failures[image] = str(error)
                image = self._replacement(list(failures), position)
        raise ImageError(
            f"cannot replace an image: {len(failures)} were tried and all are unfit; the first: "
            f"{next(iter(failures.values()))}"
        )

    def _draw_window(self, generator: np.random.Generator, image: int) -> Window | None:
        record = self._prepare.index.image(image)
        return self._crop.draw(generator, record.height, record.width) if self._crop else None

    def _replacement(self, unfit: list[int], position: int) -> int:
        """Another image for the position, of the same aspect group if possible; an unfit one if none is."""
        index = self._prepare.index
        generator = np.random.default_rng((self._seed, _REPLACEMENT, position, len(unfit)))
        drawn = self._candidates[generator.integers(len(self._candidates), size=64)]
        drawn = drawn[~np.isin(drawn, unfit)]
        if len(drawn) == 0:
            return unfit[0]
        is_wide = index.widths > index.heights
        alike = drawn[is_wide[drawn] == is_wide[unfit[0]]]
        return int((alike if len(alike) else drawn)[0])


class TestImages(Dataset[Sample | ImageError]):
    """Resized images by their place in the index."""

    __test__ = False

    def __init__(self, prepare: Preparation, *, min_size: int) -> None:
        """Take the parts."""
        self._prepare = prepare
        self._min_size = min_size

    def __getitem__(self, i: int) -> Sample | ImageError:
        """Return image `i`, or why it is unfit."""
        try:
            return self._prepare(i, min_size=self._min_size, flip=False)
        except ImageError as error:
            return error
