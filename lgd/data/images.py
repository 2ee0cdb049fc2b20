"""Image files to RGB pixels: whatever the format, upright, or an error that names the file."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision.io
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, TiffImagePlugin, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile
from torch import Tensor

from lgd.data.deep import Range, as_bytes, count_values, is_deep, read_values
from lgd.data.errors import DataError, ImageError
from lgd.data.opened import open_image
from lgd.files import open_file, read_file

_END = b"\xff\xd9"
_INK, _IN_PLANES = 5, 2
"""TIFF's numbers for CMYK, and for a plane of its own for each channel."""


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


@dataclass(frozen=True)
class Picture:
    """A decoded picture, which may be smaller than the one in the file.

    Attributes:
        pixels: (3, H, W) uint8, RGB in [0, 255]: H is height / reduction, rounded up, and W likewise.
        height: of the file's picture, upright, pixels.
        width: likewise.
        reduction: pixels of the file, each way, that one of these stands for: 1, 2, 4 or 8.
    """

    pixels: Tensor
    height: int
    width: int
    reduction: int = 1


def read_image(path: Path, value_range: Range | None = None) -> Tensor:
    """Read an image file as shown upright.

    The format is told by the content. Grey becomes three equal channels, CMYK and palettes become colours,
    alpha is dropped, more than 8 bits are mapped to 8, of an animation the first frame counts.

    Args:
        path: the file.
        value_range: see `lgd.data.decoding.Decoding`.

    Returns:
        (3, H, W) uint8, RGB in [0, 255], EXIF orientation applied.

    Raises:
        ImageError: the file is absent, not an image, cut short, of other channels than grey or RGB and alpha,
            or larger than Pillow's limit against decompression bombs.
    """
    return read_picture(path, value_range).pixels


def read_picture(path: Path, value_range: Range | None = None, reduction: int = 1) -> Picture:
    """Read an image file as `read_image` does, or smaller.

    Args:
        path: the file.
        value_range: see `lgd.data.decoding.Decoding`.
        reduction: by how much, each way, the picture may be smaller: 1, 2, 4 or 8. A JPEG comes smaller by
            exactly that if all decoders agree on it, any other picture as it is.

    Raises:
        ImageError: see `read_image`.
    """
    with _naming(path):
        content = read_file(path)
        with _open(content) as image:
            if reduction > 1 and (reduced := _decode_reduced(image, content, reduction)) is not None:
                return reduced
            return _as_picture(_decode(image, content, value_range))


def image_to_pixels(image: Image.Image, value_range: Range | None = None) -> Tensor:
    """The pixels of an image that Pillow has opened, as `read_image` has them.

    Args:
        image: of any mode.
        value_range: see `lgd.data.decoding.Decoding`.

    Raises:
        DataError: its pixels are of no known range, or its file is damaged.
    """
    try:
        if image.mode in ("I", "F") or image.mode.startswith("I;16"):
            values = np.asarray(ImageOps.exif_transpose(image))
            deep = values.astype(np.uint16) if image.mode.startswith("I;16") else values
            grey = torch.from_numpy(as_bytes(deep, value_range))
            return grey.expand(3, *grey.shape)
        if is_deep(image):
            raise ValueError("Pillow cuts the 16 bits of its colours to 8; give its path")
        return _as_tensor(image)
    except Exception as error:  # as in `_naming`
        raise DataError(f"a PIL image cannot be read: {_reason(error)}") from error


def read_jpeg_or_picture(path: Path, value_range: Range | None = None) -> Jpeg | Picture:
    """Read a plain JPEG without decoding it, and any other image as `read_image` does.

    Raises:
        ImageError: see `read_image`; damage inside of a JPEG is not found.
    """
    with _naming(path):
        content = read_file(path)
        with _open(content) as image:
            if _is_plain(image, content):
                return Jpeg(path, content, image.height, image.width)
            return _as_picture(_decode(image, content, value_range))


def count_deep_values(path: Path) -> NDArray[np.int64] | None:
    """Count the values of a picture of 16 bits, (65536,); None of one of 8 bits.

    Raises:
        ImageError: see `read_image`; a picture of 32 bits.
    """
    with _naming(path):
        with open_file(path) as file, open_image(file) as image:
            if not is_deep(image):
                return None
        content = read_file(path)
        with _open(content) as image:
            return count_values(read_values(image, content))


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
    with _naming(path), open_file(path) as file, open_image(file) as image:
        width, height = image.size
        sideways = _orientation(image) >= 5
    return (width, height) if sideways else (height, width)


def is_turned(path: Path) -> bool:
    """Whether the EXIF orientation turns the picture by a quarter, so that height and width change places.

    Raises:
        ImageError: the file is absent or not an image.
    """
    with _naming(path), open_file(path) as file, open_image(file) as image:
        return _orientation(image) >= 5


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
    return _is_plain_but_turned(image, content) and _orientation(image) == 1


def _is_plain_but_turned(image: Image.Image, content: bytes) -> bool:
    return (
        image.format == "JPEG"
        and image.mode in ("L", "RGB")
        and image.info.get("adobe_transform", 1) == 1
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


def _open(content: bytes) -> Image.Image:
    """Open an image; raises where it has channels that are neither grey, RGB nor alpha."""
    try:
        image = open_image(io.BytesIO(content))
    except UnidentifiedImageError:
        _require_colours(_read_tiff_tags(content))
        raise
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        _require_colours(image.tag_v2)
    return image


def _read_tiff_tags(content: bytes) -> Mapping[int, Any]:
    """The tags of a TIFF that Pillow does not open; none of another file."""
    file = io.BytesIO(content)
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(file.read(8))
        file.seek(tags.next)
        tags.load(file)
    except Exception:  # what it is not, or too damaged to say
        return {}
    return tags


def _require_colours(tags: Mapping[int, Any]) -> None:
    """See that Pillow takes a TIFF's channels for what they are."""
    channels = int(tags.get(TiffImagePlugin.SAMPLESPERPIXEL, 1))
    is_ink = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == _INK
    extra = tags.get(TiffImagePlugin.EXTRASAMPLES, ())
    if channels > 4 or (channels == 4 and not is_ink and (not extra or extra[0] == 0)):
        raise ValueError(
            f"it has {channels} channels, and none says which are to be seen; write three of them as RGB, or "
            "one as grey"
        )
    bits = tags.get(TiffImagePlugin.BITSPERSAMPLE, (8,))
    if channels > 2 and max(bits) > 8 and tags.get(TiffImagePlugin.PLANAR_CONFIGURATION, 1) == _IN_PLANES:
        raise ValueError(f"its {max(bits)} bits lie in a plane for each channel; write them pixel by pixel")


def _as_picture(pixels: Tensor) -> Picture:
    return Picture(pixels, pixels.shape[1], pixels.shape[2])


def _decode(image: Image.Image, content: bytes, value_range: Range | None) -> Tensor:
    if not isinstance(image, JpegImageFile) or _orientation(image) not in (1, _seen_orientation(image)):
        return _decode_with_pillow(image, content, value_range)
    pixels: Tensor = _decode_jpeg(_buffer(content))
    return pixels


def _decode_with_pillow(image: Image.Image, content: bytes, value_range: Range | None) -> Tensor:
    if is_deep(image):
        pixels = torch.from_numpy(as_bytes(read_values(image, content), value_range))
        return pixels.expand(3, *pixels.shape) if pixels.ndim == 2 else pixels.permute(2, 0, 1)
    return _as_tensor(image)


def _decode_reduced(image: Image.Image, content: bytes, reduction: int) -> Picture | None:
    """Decode a JPEG smaller than it is: libjpeg leaves out the finest waves of each block.

    Returns:
        None where decoders may not agree on it, or where it is turned and its last row or column, which stand
        for fewer pixels than the others, would become the first.
    """
    is_whole = image.width % reduction == 0 and image.height % reduction == 0
    if not _is_plain_but_turned(image, content) or not (is_whole or _orientation(image) == 1):
        return None
    height, width = image.height, image.width
    image.draft(image.mode, (max(1, width // reduction), max(1, height // reduction)))
    assert image.size == (-(-width // reduction), -(-height // reduction)), "what was asked for"
    if _orientation(image) >= 5:
        height, width = width, height
    return Picture(_as_tensor(image), height, width, reduction)


def _as_tensor(image: Image.Image) -> Tensor:
    """The picture upright, (3, H, W) uint8 RGB, not to be written to.

    Copies of large pictures cost as much as their decoding, since the system clears new memory page by page.
    """
    if _orientation(image) != 1:
        image = ImageOps.exif_transpose(image)
    pixels = np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, that the memory is not writable
        return torch.from_numpy(pixels).permute(2, 0, 1)


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
