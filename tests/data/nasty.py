"""Awkward image files as the world has them, made from one photograph, and what a loader finds in each."""

from __future__ import annotations

import json
import shutil
import struct
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from tests.samples import BCCD

PICTURE, GREY, DOTS, HALF = "the picture", "it in grey", "it in black and white dots", "it at half size"
OTHER, NOTHING = "another picture", "an error that names the file"
PHOTOGRAPH = "BloodImage_00003.jpg"
OTHER_SIZES = {"one_pixel.png": (1, 1), "strip.png": (640, 2)}


@dataclass(frozen=True)
class Nasty:
    """A kind of file.

    Attributes:
        shows: what a loader finds in it.
        write: writes it to a path, from the photograph.
    """

    shows: str
    write: Callable[[Path, Image.Image], object]


def _save(mode: str = "RGB", **options: object) -> Callable[[Path, Image.Image], None]:
    return lambda path, image: image.convert(mode).save(path, **options)


def _save_half(**options: object) -> Callable[[Path, Image.Image], None]:
    return lambda path, image: image.reduce(2).save(path, **options)


def _with_alpha(image: Image.Image, mode: str = "RGB") -> Image.Image:
    """Transparent on the left, opaque on the right."""
    image = image.convert(mode)
    image.putalpha(Image.linear_gradient("L").rotate(90).resize(image.size))
    return image


def _save_transparent_palette(path: Path, image: Image.Image) -> None:
    palette = image.quantize(256)
    commonest = max(palette.getcolors())[1]
    palette.save(path, transparency=commonest)


def _save_turned(orientation: int, turn: Image.Transpose) -> Callable[[Path, Image.Image], None]:
    """Pixels stored turned, with the EXIF tag that turns them back."""
    exif = Image.Exif()
    exif[274] = orientation
    return lambda path, image: image.transpose(turn).save(path, exif=exif, quality=95)


def _save_animation(path: Path, image: Image.Image) -> None:
    first = image.reduce(2)
    first.save(path, save_all=True, append_images=[ImageOps.invert(first)])


def _save_cut(form: str) -> Callable[[Path, Image.Image], None]:
    """The first six tenths of a file's bytes."""

    def write(path: Path, image: Image.Image) -> None:
        image.save(path, format=form)
        content = path.read_bytes()
        path.write_bytes(content[: len(content) * 6 // 10])

    return write


def _save_deep_colours(path: Path, image: Image.Image) -> None:
    """16 bits for each of red, green and blue, which Pillow reads but does not write."""
    rows = (np.asarray(image).astype(np.uint16) * 257).astype(">u2")
    path.write_bytes(_png(image.size, 16, 2, (row.tobytes() for row in rows)))


def _save_bomb(path: Path, _image: Image.Image) -> None:
    """196 million pixels in a small file: more than Pillow opens, all of them there."""
    side = 14_000
    path.write_bytes(_png((side, side), 1, 0, [bytes(side // 8)] * side))


def _png(size: tuple[int, int], bits: int, colour: int, rows: Iterable[bytes]) -> bytes:
    """A PNG of unfiltered rows."""
    compressor = zlib.compressobj(1)
    data = b"".join(compressor.compress(b"\0" + row) for row in rows) + compressor.flush()
    header = struct.pack(">2I5B", *size, bits, colour, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


def _copy(path: Path, _image: Image.Image) -> None:
    shutil.copyfile(BCCD / "train" / PHOTOGRAPH, path)


NASTY = {
    "plain.jpg": Nasty(PICTURE, _copy),
    "UPPER case ü.JPG": Nasty(PICTURE, _copy),
    "progressive.jpg": Nasty(PICTURE, _save(progressive=True, quality=90)),
    "cmyk.jpg": Nasty(PICTURE, _save("CMYK", quality=95)),
    "exif_2.jpg": Nasty(PICTURE, _save_turned(2, Image.Transpose.FLIP_LEFT_RIGHT)),
    "exif_3.jpg": Nasty(PICTURE, _save_turned(3, Image.Transpose.ROTATE_180)),
    "exif_6.jpg": Nasty(PICTURE, _save_turned(6, Image.Transpose.ROTATE_90)),
    "rgba.png": Nasty(PICTURE, lambda path, image: _with_alpha(image).save(path)),
    "palette_transparent.png": Nasty(PICTURE, _save_transparent_palette),
    "rgb16.png": Nasty(PICTURE, _save_deep_colours),
    "lossy.webp": Nasty(PICTURE, _save(quality=80)),
    "gray.jpg": Nasty(GREY, _save("L", quality=90)),
    "gray_alpha.png": Nasty(GREY, lambda path, image: _with_alpha(image, "L").save(path)),
    "gray16.png": Nasty(
        GREY,
        lambda path, image: Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(
            path
        ),
    ),
    "bilevel.png": Nasty(DOTS, _save("1")),
    "png_named.jpg": Nasty(HALF, _save_half(format="PNG")),
    "alpha.webp": Nasty(
        HALF, lambda path, image: _with_alpha(image.reduce(2)).save(path, lossless=True, exact=True)
    ),
    "lzw.tif": Nasty(HALF, _save_half(compression="tiff_lzw")),
    "animated.gif": Nasty(HALF, _save_animation),
    "one_pixel.png": Nasty(OTHER, lambda path, _: Image.new("RGB", (1, 1), (200, 30, 60)).save(path)),
    "strip.png": Nasty(OTHER, lambda path, image: image.resize((640, 2)).save(path)),
    "truncated.jpg": Nasty(NOTHING, _save_cut("JPEG")),
    "truncated.png": Nasty(NOTHING, _save_cut("PNG")),
    "empty.jpg": Nasty(NOTHING, lambda path, _: path.touch()),
    "not_an_image.jpg": Nasty(
        NOTHING, lambda path, _: path.write_text("<html><h1>404 Not Found</h1></html>")
    ),
    "bomb.png": Nasty(NOTHING, _save_bomb),
}


def names_of(*shows: str) -> list[str]:
    """The files that show one of these."""
    return [name for name, nasty in NASTY.items() if nasty.shows in shows]


def write_nasty(folder: Path) -> None:
    """Write FOLDER/images and FOLDER/instances.json: sizes and boxes as the pictures are shown, upright."""
    (folder / "images").mkdir(parents=True)
    with Image.open(BCCD / "train" / PHOTOGRAPH) as image:
        for name, nasty in NASTY.items():
            nasty.write(folder / "images" / name, image)
        sizes = {HALF: (image.width // 2, image.height // 2)}
        whole = image.size
    photographs = json.loads((BCCD / "annotations" / "instances_train.json").read_text())
    (number,) = (each["id"] for each in photographs["images"] if each["file_name"] == PHOTOGRAPH)
    boxes = [each for each in photographs["annotations"] if each["image_id"] == number]
    images, annotations = [], []
    for index, (name, nasty) in enumerate(NASTY.items(), start=1):
        width, height = OTHER_SIZES.get(name, sizes.get(nasty.shows, whole))
        images.append({"id": index, "file_name": name, "width": width, "height": height})
        for box in boxes if (width, height) == whole else ():
            annotations.append(box | {"id": len(annotations) + 1, "image_id": index})
    document = {"images": images, "annotations": annotations, "categories": photographs["categories"]}
    (folder / "instances.json").write_text(json.dumps(document))
