"""Image files to RGB pixels: whatever the format, upright, or an error that names the file."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from lgd.data.errors import ImageError

try:
    from torchcodec.decoders import decode_jpeg as _decode_with_torchcodec  # type: ignore[attr-defined]
except ImportError:
    _decode_with_torchcodec = None  # type: ignore[assignment]

_JPEG = ("JPEG", "MPO")
"""Pillow's names of what torchcodec decodes, 1.5 times as fast. Nothing else goes there: Pillow's readers are
the ones whose damaged files have been tried."""

_END = b"\xff\xd9"


@dataclass(frozen=True)
class Jpeg:
    """A JPEG that any decoder reads alike, still encoded: grey or YCbCr, upright and not cut short.

    Attributes:
        path: the file.
        content: its bytes.
        height: pixels.
        width: pixels.
    """

    path: Path
    content: bytes
    height: int
    width: int


def read_image(path: Path) -> Tensor:
    """Read an image file as shown upright.

    The format is told by the content. Grey becomes three equal channels, CMYK and palettes become colours,
    alpha is dropped, 16 bits are scaled by 1/257, of an animation the first frame counts.

    Args:
        path: the file.

    Returns:
        (3, H, W) uint8, RGB in [0, 255], EXIF orientation applied.

    Raises:
        ImageError: the file is absent, not an image, cut short, or larger than Pillow's limit against
            decompression bombs.
    """
    with _naming(path):
        content = path.read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            return _decode(image, content)


def read_jpeg_or_image(path: Path) -> Jpeg | Tensor:
    """Read a plain JPEG without decoding it, and any other image as `read_image` does.

    Raises:
        ImageError: see `read_image`; damage inside of a JPEG is not found.
    """
    with _naming(path):
        content = path.read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            if _is_plain(image, content):
                return Jpeg(path, content, image.height, image.width)
            return _decode(image, content)


def decode_jpegs(jpegs: Sequence[Jpeg], device: torch.device) -> list[Tensor | ImageError]:
    """Decode plain JPEGs on a device: on CUDA all of them at once, by nvJPEG.

    What nvJPEG cannot read is decoded on the CPU. Where both can, their values differ by a few levels, since
    the standard leaves them room in the inverse cosine transform and in enlarging the colours.

    Returns:
        Of each (3, H, W) uint8, RGB in [0, 255], on the device; or an error that names the damaged file.
    """
    if device.type == "cuda" and jpegs:
        # nvJPEG writes from a stream of its own, which does not wait for those that still read what lay in
        # this memory before.
        torch.cuda.current_stream(device).synchronize()
        with suppress(RuntimeError):  # it does not say which file is to blame
            return list(_decode_jpegs([jpeg.content for jpeg in jpegs], device))
    images: list[Tensor | ImageError] = []
    for jpeg in jpegs:
        try:
            with _naming(jpeg.path):
                images.append(_decode_jpegs([jpeg.content], torch.device("cpu"))[0].to(device))
        except ImageError as error:
            images.append(error)
    return images


def read_size(path: Path) -> tuple[int, int]:
    """Read height and width of the picture shown upright, in pixels, from the file's header.

    Raises:
        ImageError: the file is absent or not an image.
    """
    with _naming(path), Image.open(path) as image:
        width, height = image.size
        sideways = _orientation(image) >= 5
    return (width, height) if sideways else (height, width)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn whatever is raised in the block into an `ImageError` that names the file."""
    try:
        yield
    except Exception as error:  # What decoders raise on damaged files is without limit.
        raise ImageError(f"cannot read image {path}: {_reason(error)}") from error


def _orientation(image: Image.Image) -> int:
    return int(image.getexif().get(ExifTags.Base.Orientation, 1))


def _is_plain(image: Image.Image, content: bytes) -> bool:
    """Whether decoders agree on these pixels: Adobe's tag may say that YCbCr is RGB, an MPO holds several."""
    return (
        image.format == "JPEG"
        and image.mode in ("L", "RGB")
        and image.info.get("adobe_transform", 1) == 1
        and _orientation(image) == 1
        and content.endswith(_END)
    )


def _decode(image: Image.Image, content: bytes) -> Tensor:
    if image.format not in _JPEG:
        return _decode_with_pillow(image)
    return _decode_jpegs([content], torch.device("cpu"))[0]


def _decode_jpegs(contents: Sequence[bytes], device: torch.device) -> list[Tensor]:
    """Decode to RGB, upright; on CUDA the EXIF orientation is not looked at."""
    buffers = [torch.frombuffer(bytearray(content), dtype=torch.uint8) for content in contents]
    if _decode_with_torchcodec is not None:
        # It always turns pictures upright.
        return list(_decode_with_torchcodec(buffers, mode="RGB", device=device))
    from torchvision.io import ImageReadMode, decode_jpeg  # deprecated in 0.29

    return list(decode_jpeg(buffers, ImageReadMode.RGB, device, apply_exif_orientation=device.type == "cpu"))


def _decode_with_pillow(image: Image.Image) -> Tensor:
    if image.mode.startswith("I;16"):
        grey = np.asarray(ImageOps.exif_transpose(image)).astype(np.int32)
        return torch.from_numpy(((grey + 128) // 257).astype(np.uint8)).expand(3, *grey.shape)
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of 32 bits (Pillow's mode {image.mode}) have no known range")
    upright = ImageOps.exif_transpose(image).convert("RGB")
    return torch.from_numpy(np.array(upright)).permute(2, 0, 1)


def _reason(error: Exception) -> str:
    """Why, in one line, without a decoder's source locations."""
    if isinstance(error, UnidentifiedImageError):
        return "it is empty, or no image of a known format"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error).rpartition(".cpp:")[2].partition(", ")[2] if ".cpp:" in str(error) else str(error)
    return text.partition("\n")[0] or type(error).__name__
