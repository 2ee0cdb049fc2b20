"""Image files to RGB pixels: whatever the format, upright, or an error that names the file."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision.io
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile
from torch import Tensor

from lgd.data.errors import DataError, ImageError
from lgd.files import open_file

_END = b"\xff\xd9"


def _find_decoder() -> Callable[..., Any]:
    """What makes RGB of JPEGs and turns them upright: torchcodec, or torchvision where that cannot be had.

    Both stand on libjpeg-turbo, give the same pixels 1.4 times as fast as Pillow, and are for JPEGs alone: of
    PNGs with a few damaged bytes, torchvision's (deprecated since 0.29) ends the process on one in five.
    A torchcodec built for another torch (for CUDA's, where this one has none) fails to load: an OSError.
    """
    try:
        from torchcodec.decoders import decode_jpeg  # type: ignore[attr-defined, unused-ignore]
    except (ImportError, OSError):
        rgb = torchvision.io.ImageReadMode.RGB
        return partial(torchvision.io.decode_jpeg, mode=rgb, apply_exif_orientation=True)
    return decode_jpeg


_decode_jpeg = _find_decoder()


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
        content = _read(path)
        with Image.open(io.BytesIO(content)) as image:
            return _decode(image, content)


def read_jpeg_or_image(path: Path) -> Jpeg | Tensor:
    """Read a plain JPEG without decoding it, and any other image as `read_image` does.

    Raises:
        ImageError: see `read_image`; damage inside of a JPEG is not found.
    """
    with _naming(path):
        content = _read(path)
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

    Raises:
        DataError: the device is CUDA's, and the decoder was built without nvJPEG.
    """
    buffers = [_buffer(jpeg.content) for jpeg in jpegs]
    if device.type == "cuda" and jpegs:
        # nvJPEG does not wait for what is queued on a stream and still reads what lay in this memory before:
        # torchvision gives it one of its own, the JPEG engine of an H100 heeds none.
        torch.cuda.current_stream(device).synchronize()
        try:
            return list(_decode_jpeg(buffers, device=device))
        except RuntimeError as error:  # it does not say which file is to blame
            _require_nvjpeg(error, device)
    images: list[Tensor | ImageError] = []
    for jpeg, buffer in zip(jpegs, buffers, strict=True):
        try:
            with _naming(jpeg.path):
                images.append(_decode_jpeg(buffer).to(device))
        except ImageError as error:
            images.append(error)
    return images


def read_size(path: Path) -> tuple[int, int]:
    """Read height and width of the picture shown upright, in pixels, from the file's header.

    Raises:
        ImageError: the file is absent or not an image.
    """
    with _naming(path), open_file(path) as file, Image.open(file) as image:
        width, height = image.size
        sideways = _orientation(image) >= 5
    return (width, height) if sideways else (height, width)


def _read(path: Path) -> bytes:
    with open_file(path) as file:
        return file.read()


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


def _seen_orientation(image: JpegImageFile) -> int:
    """The orientation that the decoders find: they look at the first APP1 segment alone, which may be XMP."""
    first = next((content for marker, content in image.applist if marker == "APP1"), b"")
    exif = Image.Exif()
    if first.startswith(b"Exif"):
        exif.load(first)
    return int(exif.get(ExifTags.Base.Orientation, 1))


def _require_nvjpeg(error: RuntimeError, device: torch.device) -> None:
    """Refuse a decoder that was built without nvJPEG, rather than decode on the CPU unasked."""
    if "not compiled with nvJPEG" in str(error):
        raise DataError(
            f"JPEGs cannot be decoded on {device}: the decoder was built without nvJPEG; install the "
            f"torchcodec that goes with torch {torch.__version__}, or set DATALOADER.DECODE_ON_GPU False"
        ) from error


def _buffer(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def _decode(image: Image.Image, content: bytes) -> Tensor:
    if not isinstance(image, JpegImageFile) or _orientation(image) not in (1, _seen_orientation(image)):
        return _decode_with_pillow(image)
    pixels: Tensor = _decode_jpeg(_buffer(content))
    return pixels


def _decode_with_pillow(image: Image.Image) -> Tensor:
    if image.mode.startswith("I;16"):
        grey = np.asarray(ImageOps.exif_transpose(image)).astype(np.int32)
        return torch.from_numpy(((grey + 128) // 257).astype(np.uint8)).expand(3, *grey.shape)
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of 32 bits (Pillow's mode {image.mode}) have no known range")
    upright = ImageOps.exif_transpose(image).convert("RGB")
    return torch.from_numpy(np.array(upright)).permute(2, 0, 1)


def _reason(error: Exception) -> str:
    """Why, in one line, without the decoders' source locations."""
    if isinstance(error, UnidentifiedImageError):
        return "it is empty, or no image of a known format"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error).rpartition(".cpp:")[2].partition(", ")[2] if ".cpp:" in str(error) else str(error)
    reason = text.partition("\n")[0].rstrip(".")
    if reason.startswith("Skipped over more data"):  # torchcodec, of a file that ends within a segment
        return "Image is incomplete or truncated"
    return reason or type(error).__name__
