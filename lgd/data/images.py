"""Image files to RGB pixels: whatever the format, upright, or an error that names the file."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
import torchvision.io
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from lgd.data.errors import ImageError

_JPEG = ("JPEG", "MPO")
"""Pillow's names of what torchvision decodes, 1.5 times as fast. Nothing else goes there: its PNG decoder
(0.29) ends the process with a segmentation fault on one in five files with a few damaged bytes."""


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
    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            return _decode_jpeg(content) if image.format in _JPEG else _decode_with_pillow(image)
    except Exception as error:  # What decoders raise on damaged files is without limit.
        raise ImageError(f"cannot read image {path}: {_reason(error)}") from error


def read_size(path: Path) -> tuple[int, int]:
    """Read height and width of the picture shown upright, in pixels, from the file's header.

    Raises:
        ImageError: the file is absent or not an image.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            sideways = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
    except Exception as error:  # What decoders raise on damaged files is without limit.
        raise ImageError(f"cannot read image {path}: {_reason(error)}") from error
    return (width, height) if sideways else (height, width)


def _decode_jpeg(content: bytes) -> Tensor:
    buffer = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    mode = torchvision.io.ImageReadMode.RGB
    pixels: Tensor = torchvision.io.decode_jpeg(buffer, mode, apply_exif_orientation=True)
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
    """Why, in one line, without torchvision's source locations."""
    if isinstance(error, UnidentifiedImageError):
        return "it is empty, or no image of a known format"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error).rpartition(".cpp:")[2].partition(", ")[2] if ".cpp:" in str(error) else str(error)
    return text.partition("\n")[0] or type(error).__name__
