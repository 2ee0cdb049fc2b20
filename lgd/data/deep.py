"""Pictures of more than 8 bits a channel: their values as they are, and what of them becomes bytes.

Legend: h x w the picture, upright.
"""

from __future__ import annotations

import io
import sys
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

Range = tuple[float, float]
"""The values that become 0 and 255, the first below the second."""

WHOLE_RANGE: Range = (0.0, 65535.0)
"""Of 16 bits."""

Values = NDArray[Any]

_TALLY = 65536

_LARGEST = 1e300

_NO_RANGE = "pixels of 32 bits have no known range: give it (INPUT.RANGE '[lowest, highest]')"


def is_deep(image: Image.Image) -> bool:
    """Whether an image, opened and not loaded yet, has more than 8 bits a channel."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16") or ";16" in _raw_mode(image)


def is_range_setting(value: Any) -> bool:
    """Whether a value read from a file is what INPUT.RANGE can be: "auto", or two numbers that rise."""
    if not isinstance(value, list | tuple):
        return type(value) is str and value == "auto"
    return (
        len(value) == 2
        and all(type(end) in (int, float) and abs(end) < _LARGEST for end in value)
        and value[0] < value[1]
    )


def read_values(image: Image.Image, content: bytes) -> Values:
    """Read what a deep image holds.

    Args:
        image: opened and not loaded yet, see `is_deep`.
        content: of its file.

    Returns:
        (h, w) of grey or (h, w, 3) of RGB pictures: uint16, or of 32 bits int32 or float32. Alpha is dropped.

    Raises:
        ValueError: a kind of 16 bits that cannot be read without losing half of them.
    """
    if image.mode.startswith("I;16"):
        return np.asarray(ImageOps.exif_transpose(image)).astype(np.uint16)
    if image.mode in ("I", "F"):
        return np.asarray(ImageOps.exif_transpose(image))
    return _read_colours(image, content)


def as_bytes(values: Values, value_range: Range | None) -> NDArray[np.uint8]:
    """Map values linearly to 0 to 255, rounded; what lies outside the range to its nearer end, NaN to 0.

    Args:
        values: as from `read_values`.
        value_range: None for all of 16 bits.

    Raises:
        ValueError: values of 32 bits, and no range.
    """
    if values.dtype == np.uint16:
        mapped: NDArray[np.uint8] = _table(value_range or WHOLE_RANGE)[values]
        return mapped
    if value_range is None:
        raise ValueError(_NO_RANGE)
    return _map(values, value_range)


def count_values(values: Values) -> NDArray[np.int64]:
    """How often each of the 65,536 values comes up in a picture of 16 bits.

    Raises:
        ValueError: it has 32 bits.
    """
    if values.dtype != np.uint16:
        raise ValueError(_NO_RANGE)
    return np.bincount(values.reshape(-1), minlength=_TALLY)


def find_range(counts: NDArray[np.int64], left_out: float = 1e-5) -> Range:
    """The least and the greatest value of what was counted.

    Args:
        counts: (65536,) how often each value comes up.
        left_out: share of the pixels that is left out at either end: sensors have broken pixels.

    Returns:
        Two different numbers.
    """
    most = int(left_out * counts.sum())
    low = int(np.searchsorted(np.cumsum(counts), most, side="right"))
    high = _TALLY - 1 - int(np.searchsorted(np.cumsum(counts[::-1]), most, side="right"))
    return (float(low), float(high)) if low < high else (float(low), low + 1.0)


def _raw_mode(image: Image.Image) -> str:
    """What Pillow calls the layout of the file's pixels: "RGB;16B"."""
    tiles = getattr(image, "tile", None)
    arguments = tiles[0].args if tiles else None
    raw = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return raw if isinstance(raw, str) else ""


def _read_colours(image: Image.Image, content: bytes) -> Values:
    """Read 16-bit colours, of which Pillow keeps 8 bits: once one byte of each number, once the other."""
    kind, _, order = _raw_mode(image).partition(";16")
    if kind not in ("RGB", "RGBA", "RGBX"):
        raise ValueError(f"16 bits of {kind} cannot be read; write the picture as grey or RGB without alpha")
    first, second = (_read_with(content, f"{kind};16{end}") for end in "BL")
    is_big = order == "B" or (order == "N" and sys.byteorder == "big")
    high, low = (first, second) if is_big else (second, first)
    return high.astype(np.uint16) << 8 | low


def _read_with(content: bytes, raw_mode: str) -> NDArray[np.uint8]:
    """Decode as if the pixels lay so in the file: big-endian takes the first byte, little the second."""
    with Image.open(io.BytesIO(content)) as image:
        tiles = []
        for tile in image.tile:
            arguments = (raw_mode, *tile.args[1:]) if isinstance(tile.args, tuple) else raw_mode
            tiles.append(tile._replace(args=arguments))
        image.tile = tiles
        return np.array(ImageOps.exif_transpose(image).convert("RGB"))


@cache
def _table(value_range: Range) -> NDArray[np.uint8]:
    """(65536,): of each value of 16 bits the byte."""
    return _map(np.arange(_TALLY), value_range)


def _map(values: Values, value_range: Range) -> NDArray[np.uint8]:
    low, high = value_range
    scaled = (values.astype(np.float64) - low) * (255 / (high - low))
    return np.floor(np.nan_to_num(scaled, nan=0.0).clip(0, 255) + 0.5).astype(np.uint8)
