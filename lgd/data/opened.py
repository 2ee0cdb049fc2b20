"""Pillow's way into image files, with a limit that no other library can take away."""

from __future__ import annotations

import os
from typing import IO

from PIL import Image

MAX_DECODED_PIXELS = 178_956_970
"""Of a picture that is decoded: Pillow's own limit against decompression bombs.

Pillow keeps it in a variable of the module, which other libraries set to None in the whole process (sahi 0.12
does when it reads an image), so it is held here as well.
"""


def open_image(file: str | os.PathLike[str] | IO[bytes]) -> Image.Image:
    """Open an image; its pixels are not decoded yet.

    Raises:
        ValueError: it has more than `MAX_DECODED_PIXELS`.
        Exception: what Pillow raises on files that it cannot open is without limit.
    """
    image = Image.open(file)
    if image.width * image.height > MAX_DECODED_PIXELS:
        image.close()
        raise ValueError(
            f"{image.width} x {image.height} pixels are more than the {MAX_DECODED_PIXELS} that are decoded "
            "(a decompression bomb?)"
        )
    return image
