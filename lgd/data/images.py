"""Image files to RGB pixels: whatever the format, upright, or an error that names the file."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
import torchvision.io
from PIL import Image, ImageOps
from torch import Tensor

from lgd.data.errors import ImageError

_TORCHVISION_FORMATS = ("JPEG", "MPO", "PNG")
"""What torchvision decodes, faster than Pillow (the formats' names in Pillow); the rest is left to Pillow."""


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
            if image.format in _TORCHVISION_FORMATS:
                return _decode_with_torchvision(content)
            return _decode_with_pillow(image)
    except OSError as error:
        raise ImageError(f"cannot read image {path}: {_one_line(error)}") from error
    except (Image.DecompressionBombError, RuntimeError, SyntaxError, ValueError) as error:
        raise ImageError(f"cannot read image {path}: {_one_line(error)}") from error


def _decode_with_torchvision(content: bytes) -> Tensor:
    buffer = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    mode = torchvision.io.ImageReadMode.RGB
    pixels = torchvision.io.decode_image(buffer, mode, apply_exif_orientation=True)
    return _to_uint8(pixels) if pixels.dtype == torch.uint16 else pixels


def _decode_with_pillow(image: Image.Image) -> Tensor:
    if image.mode.startswith("I;16"):
        grey = torch.from_numpy(np.asarray(ImageOps.exif_transpose(image)).astype(np.uint16))
        return _to_uint8(grey).expand(3, *grey.shape)
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of 32 bits (Pillow's mode {image.mode}) have no known range")
    upright = ImageOps.exif_transpose(image).convert("RGB")
    return torch.from_numpy(np.array(upright)).permute(2, 0, 1)


def _to_uint8(pixels: Tensor) -> Tensor:
    """Scale 16 bits to 8: 65535 / 257 = 255."""
    return ((pixels.int() + 128) // 257).to(torch.uint8)


def _one_line(error: Exception) -> str:
    """The error's message without torchvision's source locations and line breaks."""
    if isinstance(error, RuntimeError):
        return str(error).rpartition(".cpp:")[2].partition(", ")[2].partition("\n")[0] or str(error)
    return (error.strerror if isinstance(error, OSError) else None) or " ".join(str(error).split())
