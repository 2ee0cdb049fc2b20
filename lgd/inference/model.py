"""A trained model: pictures of any kind in, what it found in them out.

Legend: H x W a picture, h x w what the model sees of it, B views of a batch.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lgd.data.canvases import Canvas, fit_canvas, tight_canvas
from lgd.data.collate import Layout, collate
from lgd.data.decoding import DEFAULT_DECODING, Decoding
from lgd.data.images import Picture as ReducedPicture
from lgd.data.images import read_image, read_picture, read_size
from lgd.data.samples import Sample, SmallImage
from lgd.data.transforms import ImageFormat, View, Window, resized_size
from lgd.detectors.protocol import Detector
from lgd.inference.pictures import PIXELS_AHEAD, Picture, Unreadable, read_pictures, to_picture
from lgd.inference.result import Result
from lgd.inference.side_by_side import Mapper, Parts, side_by_side
from lgd.inference.sources import Source, find_sources, means_one_picture
from lgd.inference.tiles import Tiling, is_number, merge_tiles
from lgd.structures import Batch, Detections

Backend = Callable[[Batch], list[Detections]]
"""What runs a model: a batch on the host in, the detections of its images out, wherever they lie."""

_BATCHES_AT_ONCE = 4
"""So many batches of pictures are sorted by their canvases together."""


@dataclass(frozen=True)
class InputRule:
    """How a model wants pictures, as its evaluations in training had them.

    Attributes:
        min_size: length of the short side, pixels; 0 for no change.
        max_size: cap on the long side, pixels.
        image_format: order of the channels.
        layout: of the images of a batch.
        batch_size: images of a batch in evaluations.
        decoding: how files become pixels.
        canvas: the only one (height, width) that the model takes, pixels, into which pictures are shrunk that
            came out larger; None for any.
    """

    min_size: int
    max_size: int
    image_format: ImageFormat
    layout: Layout
    batch_size: int = 1
    decoding: Decoding = DEFAULT_DECODING
    canvas: Canvas | None = None

    def view(self, window: Window) -> View:
        """How the model sees a part of a picture."""
        size = resized_size(window.height, window.width, self.min_size, self.max_size)
        if self.canvas is not None:
            factor = min(1.0, self.canvas[0] / size[0], self.canvas[1] / size[1])
            size = max(1, int(size[0] * factor + 0.5)), max(1, int(size[1] * factor + 0.5))
        return View(window, size, False, self.image_format)


@dataclass(frozen=True)
class _Request:
    """What is asked of the model: see `TrainedModel.predict`; `labels` (n,) int64 or None for all."""

    score: float
    batch: int
    labels: Tensor | None
    tiling: Tiling | None
    keep_pixels: bool


@dataclass(frozen=True)
class _Look:
    """A picture, and what the model shall see of it."""

    picture: Picture
    size: tuple[int, int]
    windows: Sequence[Window]
    samples: Sequence[Sample]


class TrainedModel:
    """A detector with its weights; see `lgd.load`."""

    def __init__(
        self,
        run: Backend,
        rule: InputRule,
        *,
        class_names: Sequence[str],
        category_ids: Sequence[int],
        with_masks: bool,
        device: torch.device,
        parts: Parts | None = None,
    ) -> None:
        """Take the parts.

        Args:
            run: the detector.
            rule: how it wants pictures.
            class_names: the K class names by label.
            category_ids: the K ids of the annotation file that it was trained with.
            with_masks: whether it predicts masks.
            device: where it runs.
            parts: how a batch is cut where several calls of `run` at once get more done on a CPU than one
                after the other; None where they wait for each other.
        """
        self.run = run
        self.rule = rule
        self.class_names = tuple(class_names)
        self.category_ids = tuple(category_ids)
        self.with_masks = with_masks
        self.device = device
        self.parts = parts if device.type == "cpu" else None

    def predict(
        self,
        x: Any,
        score: float = 0.5,
        batch: int = 8,
        *,
        classes: str | Sequence[str] | None = None,
        tile: int | None = None,
        overlap: float | None = None,
    ) -> Result | list[Result]:
        """Detect in one picture or many.

        Args:
            x: a picture: its file, a PIL image, an RGB array (H, W, 3) of uint8, or an RGB tensor (3, H, W)
                of uint8; a folder, a glob, a list of files (`.txt`) or a video; or a list of any of these.
            score: the least score, in [0, 1].
            batch: pictures that the model looks at together.
            classes: name, or names, of those that are looked for; None for all.
            tile: side of the tiles in which large pictures are looked at too, pixels; None for none.
            overlap: share of a tile that its neighbour sees too; None for a fifth.

        Returns:
            A result for one picture, else a list of them, in order.

        Raises:
            DataError: there is no such file, it cannot be read, or `x` is something else.
            ValueError: a number outside of its range, a class that there is not.
        """
        request = self._request(score, batch, classes, tile, overlap, keep_pixels=False)
        results = [_require(each) for each in self._stream(self._inputs(x), request)]
        is_path = isinstance(x, str | os.PathLike)
        is_one = means_one_picture(x) if is_path else not isinstance(x, list | tuple)
        return results[0] if is_one else results

    def stream(
        self,
        source: Any,
        score: float = 0.5,
        batch: int = 8,
        *,
        classes: str | Sequence[str] | None = None,
        tile: int | None = None,
        overlap: float | None = None,
        keep_pixels: bool = True,
        on_unreadable: Callable[[Unreadable], None] | None = None,
    ) -> Iterator[Result]:
        """Detect in a folder, a video, or whatever else `predict` takes, picture by picture.

        The memory that this needs does not depend on how many there are.

        Args:
            source: see `predict`; or what `find_sources` has found.
            score: see `predict`.
            batch: see `predict`.
            classes: see `predict`.
            tile: see `predict`.
            overlap: see `predict`.
            keep_pixels: whether results hold the picture, so that drawing does not read it again.
            on_unreadable: told of what cannot be read, which is then left out; None raises instead.

        Yields:
            A result of each picture, in order.

        Raises:
            DataError: see `predict`.
            ValueError: see `predict`.
        """
        request = self._request(score, batch, classes, tile, overlap, keep_pixels=keep_pixels)
        return self._report(self._stream(self._inputs(source), request), on_unreadable)

    def _inputs(self, x: Any) -> list[Source | Picture]:
        """The files and pictures that are meant by one thing or a list of them."""
        inputs: list[Source | Picture] = []
        for each in x if isinstance(x, list | tuple) else [x]:
            if isinstance(each, str | os.PathLike):
                inputs += find_sources([each])
            elif isinstance(each, Source | Picture):
                inputs.append(each)
            else:
                inputs.append(to_picture(each, self.rule.decoding.value_range))
        return inputs

    def _report(
        self, found: Iterator[Result | Unreadable], on_unreadable: Callable[[Unreadable], None] | None
    ) -> Iterator[Result]:
        for each in found:
            if isinstance(each, Result) or on_unreadable is None:
                yield _require(each)
            else:
                on_unreadable(each)

    def _request(
        self,
        score: float,
        batch: int,
        classes: str | Sequence[str] | None,
        tile: int | None,
        overlap: float | None,
        *,
        keep_pixels: bool,
    ) -> _Request:
        if not is_number(score) or not 0 <= score <= 1:
            raise ValueError(f"the least score is {score!r}; give a number from 0 to 1")
        if not is_number(batch, whole=True) or batch < 1:
            raise ValueError(f"the batch is {batch!r}; give a whole number from 1 on")
        labels = None if classes is None else torch.tensor(self._labels_of(classes), dtype=torch.int64)
        return _Request(score, batch, labels, Tiling.of(tile, overlap), keep_pixels)

    def _stream(self, inputs: Sequence[Source | Picture], request: _Request) -> Iterator[Result | Unreadable]:
        prepare = partial(self._prepare, request=request)
        read = read_pictures(inputs, prepare, _num_pixels)
        with side_by_side(self.parts.num_threads(request.batch) if self.parts else 1) as run_each:
            for looks in _gather(read, request.batch * _BATCHES_AT_ONCE):
                found = self._detect([each for each in looks if isinstance(each, _Look)], request, run_each)
                for look in looks:
                    yield look if isinstance(look, Unreadable) else next(found)

    def _labels_of(self, names: str | Sequence[str]) -> list[int]:
        is_one = isinstance(names, str) or not isinstance(names, Iterable)  # a text is one, of its letters
        names = [names] if is_one else list(names)  # type: ignore[list-item]
        if len(names) == 0:
            raise ValueError("no class is named to look for; name some, or leave classes out for all")
        for name in names:
            if name not in self.class_names:
                raise ValueError(f"there is no class {name!r}; the model has {', '.join(self.class_names)}")
        return [label for label, name in enumerate(self.class_names) if name in names]

    def _prepare(self, source: Source | Picture, *, request: _Request) -> _Look:
        """Read what the model shall see of a file, as its evaluations in training read it.

        Raises:
            ImageError: the file is unfit.
        """
        if isinstance(source, Picture):
            return self._look(source, request)
        decoding = self.rule.decoding
        if request.tiling is None:
            height, width = read_size(source.path)
            view = self.rule.view(Window(0, 0, height, width))
            reduction = decoding.reduction(height, width, view.reduction)
            seen = read_picture(source.path, decoding.value_range, reduction)
            if seen.reduction > 1:
                return self._look_at_reduced(source, seen, request)
            return self._look(Picture(seen.pixels, source.name, source.path), request)
        return self._look(
            Picture(read_image(source.path, decoding.value_range), source.name, source.path), request
        )

    def _look_at_reduced(self, source: Source, seen: ReducedPicture, request: _Request) -> _Look:
        """A large picture that was decoded smaller for the model; whole only where it is to be kept."""
        window = Window(0, 0, seen.height, seen.width)
        sample = _sample(self.rule.view(window)(seen.pixels, seen.reduction), window)
        pixels = seen.pixels.new_empty(3, 0, 0)
        if request.keep_pixels:
            pixels = read_image(source.path, self.rule.decoding.value_range)
        return _Look(Picture(pixels, source.name, source.path), (seen.height, seen.width), [window], [sample])

    def _look(self, picture: Picture, request: _Request) -> _Look:
        """What the model shall see of a picture; tiles are made when their turn comes."""
        height, width = picture.pixels.shape[1:]
        tiling = request.tiling
        windows = tiling.windows(height, width) if tiling else [Window(0, 0, height, width)]
        views = [self.rule.view(window) for window in windows]
        first, *others = views
        images: list[Tensor | SmallImage] = [first(picture.pixels)]
        images += [SmallImage(picture.pixels, view) for view in others]
        samples = [_sample(image, window) for image, window in zip(images, windows, strict=True)]
        if not request.keep_pixels and picture.path is not None:
            picture = replace(picture, pixels=picture.pixels.new_empty(3, 0, 0))
        return _Look(picture, (height, width), windows, samples)

    def _detect(self, looks: Sequence[_Look], request: _Request, run_each: Mapper) -> Iterator[Result]:
        """Detect on some pictures, batching what has the same canvas, so that nothing is padded further."""
        groups: dict[Canvas, list[tuple[int, int]]] = defaultdict(list)
        for i, look in enumerate(looks):
            for j, sample in enumerate(look.samples):
                tight = tight_canvas([sample.size], self.rule.layout.size_divisibility)
                groups[fit_canvas(tight, self.rule.layout.canvases)].append((i, j))
        size = self.parts.size(request.batch) if self.parts else request.batch
        batches = [
            group[start : start + size] for group in groups.values() for start in range(0, len(group), size)
        ]

        def run(places: Sequence[tuple[int, int]]) -> list[Detections]:
            images = collate([looks[i].samples[j] for i, j in places], layout=self.rule.layout)
            assert isinstance(images, Batch)
            return [_select(detections.to("cpu"), request) for detections in self.run(images)]

        found: dict[tuple[int, int], Detections] = {}
        for places, detections in zip(batches, run_each(run, batches), strict=True):
            found.update(zip(places, detections, strict=True))
        for i, look in enumerate(looks):
            parts = [found.pop((i, j)) for j in range(len(look.windows))]
            yield self._result(
                look, parts[0] if len(parts) == 1 else merge_tiles(parts, look.windows, *look.size)
            )

    def _result(self, look: _Look, detections: Detections) -> Result:
        picture = look.picture
        return Result(
            detections,
            look.size,
            self.class_names,
            self.category_ids,
            name=picture.name,
            path=picture.path,
            frame=picture.frame,
            rate=picture.rate,
            pixels=picture.pixels if picture.pixels.numel() else None,
        )


def run_eagerly(detector: Detector, device: torch.device, *, mixed_precision: bool) -> Backend:
    """Run a detector, in evaluation mode on `device`, as its evaluations in training do."""

    def run(batch: Batch) -> list[Detections]:
        batch = batch.to(device)
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=mixed_precision):
            return detector.detect(detector.extract_features(batch), batch)

    return run


def _gather(looks: Iterable[_Look | Unreadable], count: int) -> Iterator[list[_Look | Unreadable]]:
    """Part what comes into lists of at most so many, and not many pixels more than are read ahead."""
    some: list[_Look | Unreadable] = []
    pixels = 0
    for look in looks:
        some.append(look)
        pixels += _num_pixels(look) if isinstance(look, _Look) else 0
        if len(some) >= count or pixels >= PIXELS_AHEAD:
            yield some
            some, pixels = [], 0
    if some:
        yield some


def _num_pixels(look: _Look) -> int:
    """Of the picture where it is kept, and of what the model sees of the whole."""
    height, width = look.samples[0].size
    kept = look.picture.pixels.numel() // 3 or (look.size[0] * look.size[1] if len(look.windows) > 1 else 0)
    return kept + height * width


def _sample(image: Tensor | SmallImage, window: Window) -> Sample:
    return Sample(
        image=image,
        boxes=torch.zeros(0, 4),
        labels=torch.zeros(0, dtype=torch.int64),
        original_size=(window.height, window.width),
        image_id=0,
    )


def _select(found: Detections, request: _Request) -> Detections:
    kept = found.scores >= request.score
    if request.labels is not None:
        kept &= torch.isin(found.labels, request.labels)
    masks = None if found.masks is None else found.masks[kept]
    return Detections(found.boxes[kept], found.scores[kept], found.labels[kept], masks)


def _require(found: Result | Unreadable) -> Result:
    if isinstance(found, Unreadable):
        raise found.error
    return found
