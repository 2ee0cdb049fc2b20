"""Pictures to detect on, whatever they come as, read ahead of the detector in a bounded amount of memory.

Legend: H x W a picture.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lgd.data.deep import Range
from lgd.data.errors import DataError, ImageError
from lgd.data.images import image_to_pixels
from lgd.inference.sources import Source
from lgd.words import say_type

T = TypeVar("T")

PIXELS_AHEAD = 2**26
"""Pictures are read ahead of the detector until they have so many pixels together."""

_THREADS = 4


@dataclass(frozen=True)
class Picture:
    """A picture to detect on.

    Attributes:
        pixels: (3, H, W) uint8, RGB, upright.
        name: what it is called; "" where it came without one.
        path: its file, or the video's; None where there is none.
        frame: its number in the video, from 0; None for a picture of its own.
        rate: of its video, frames a second; None for a picture of its own.
    """

    pixels: Tensor
    name: str = ""
    path: Path | None = None
    frame: int | None = None
    rate: float | None = None


@dataclass(frozen=True)
class Unreadable:
    """A file that is no picture, or what comes behind a video's damage."""

    source: Source
    error: DataError


def to_picture(value: Any, value_range: Range | None = None) -> Picture:
    """Take a picture that is in memory already.

    Args:
        value: a PIL image, which is turned upright; an RGB array (H, W, 3) or a grey one (H, W), uint8; or an
            RGB tensor (3, H, W), uint8.
        value_range: see `lgd.data.images.Decoding`.

    Raises:
        DataError: it is something else.
    """
    if isinstance(value, Image.Image):
        return Picture(image_to_pixels(value, value_range), _name_of(value))
    if isinstance(value, np.ndarray) and value.dtype == np.uint8:
        if value.ndim == 2 and value.size:
            return Picture(torch.from_numpy(np.ascontiguousarray(value)).expand(3, *value.shape))
        if value.ndim == 3 and value.shape[2] == 3 and value.size:
            return Picture(torch.from_numpy(np.ascontiguousarray(value)).permute(2, 0, 1))
    if isinstance(value, Tensor) and value.dtype == torch.uint8 and _is_rgb(value.shape):
        return Picture(value.detach().cpu())
    raise DataError(
        f"{_describe(value)} is no picture: give a path, a PIL image, an RGB array (H, W, 3) of uint8, "
        "an RGB tensor (3, H, W) of uint8, or a list of these"
    )


def read_pictures(
    sources: Iterable[Source | Picture], prepare: Callable[[Source | Picture], T], cost: Callable[[T], int]
) -> Iterator[T | Unreadable]:
    """Read and prepare pictures in order, in threads that run ahead of who takes them.

    Args:
        sources: files, or pictures that are there already.
        prepare: what to make of a picture or its file; called in a thread.
        cost: pixels that this keeps in memory.

    Yields:
        What was prepared, or what could not be read.
    """
    threads = min(_THREADS, os.cpu_count() or 1)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="pictures")
    ahead: deque[Future[T | Unreadable]] = deque()

    def is_enough() -> bool:
        done = sum(_cost(future.result(), cost) for future in ahead if future.done())
        return len(ahead) > 4 * threads or done > PIXELS_AHEAD

    try:
        for source in sources:
            if isinstance(source, Source) and source.is_video:
                yield from (future.result() for future in _drain(ahead))
                for frame in _read_frames(source):
                    yield frame if isinstance(frame, Unreadable) else prepare(frame)
                continue
            ahead.append(pool.submit(_read, source, prepare))
            while ahead and is_enough():
                yield ahead.popleft().result()
        yield from (future.result() for future in _drain(ahead))
    finally:
        pool.shutdown(cancel_futures=True)


def _drain(ahead: deque[T]) -> Iterator[T]:
    while ahead:
        yield ahead.popleft()


def _cost(read: T | Unreadable, cost: Callable[[T], int]) -> int:
    return 0 if isinstance(read, Unreadable) else cost(read)


def _read(source: Source | Picture, prepare: Callable[[Source | Picture], T]) -> T | Unreadable:
    if isinstance(source, Picture):
        return prepare(source)
    try:
        return prepare(source)
    except ImageError as error:
        return Unreadable(source, error)


def _read_frames(source: Source) -> Iterator[Picture | Unreadable]:
    """Yield a video's frames upright, one at a time; damage ends them."""
    try:
        import av
    except ImportError:
        raise DataError(f"{source.path}: videos need PyAV; pip install 'lgd[video]'") from None
    try:
        with av.open(str(source.path)) as video:
            stream = video.streams.video[0]
            stream.thread_type = "AUTO"
            rate = float(stream.average_rate or 25)
            for number, frame in enumerate(video.decode(stream)):
                pixels = np.rot90(frame.to_ndarray(format="rgb24"), round(getattr(frame, "rotation", 0) / 90))
                tensor = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)
                yield Picture(tensor, source.name, source.path, number, rate)
    except (OSError, ValueError, IndexError) as error:  # PyAV's own kinds are these
        reason = "it holds no video" if isinstance(error, IndexError) else getattr(error, "strerror", error)
        yield Unreadable(source, ImageError(f"cannot read video {source.path}: {reason}"))


def _name_of(image: Image.Image) -> str:
    """The name of its file, if it was opened from one."""
    name = getattr(image, "filename", "")
    return Path(name).name if isinstance(name, str) else ""


def _describe(value: Any) -> str:
    shape = getattr(value, "shape", None)
    if shape is None:
        return say_type(value)
    return f"{say_type(value)} of shape {tuple(shape)}, {str(value.dtype).removeprefix('torch.')},"


def _is_rgb(shape: Sequence[int]) -> bool:
    """Whether it is (3, H, W), and not empty."""
    return len(shape) == 3 and shape[0] == 3 and 0 not in shape
