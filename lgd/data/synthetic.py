"""The embedded data set: small scenes of shapes, written in COCO's layout and read like any other set.

A scene is a noisy background with up to seven shapes of six classes, of several textures, sizes and turns,
later ones over earlier ones. Each class mostly has a colour of its own: a detector soon learns that much, and
then has the shapes to learn. Boxes and masks are those of the visible part, and no shape is nearly hidden.
Everything follows from the seed.
"""

from __future__ import annotations

import colorsys
import json
import logging
import math
import shutil
import uuid
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from lgd.data.errors import DataError

logger = logging.getLogger(__name__)

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

DEFAULT_SIZES = {"train": 600, "val": 120}
"""Images of each split."""

CLASS_NAMES = ("disk", "square", "triangle", "star", "ring", "cross")

_VERSION = 1
_SCENE_SIZES = ((160, 192), (192, 160), (160, 160), (160, 224), (224, 160))
_SMALLEST, _LARGEST = 24.0, 96.0
_MIN_VISIBLE = 0.4
_MOST_TURNED = math.radians(25)
_MIN_AREA = 80
_EMPTY_SHARE = 0.03
_MIN_CONTRAST = 120.0
_OWN_COLOUR_SHARE = 0.9
_SUPERSAMPLING = 3


@dataclass(frozen=True)
class Scene:
    """A picture and what is to be seen in it.

    Attributes:
        image: (H, W, 3) uint8, RGB.
        labels: of the objects, places in `CLASS_NAMES`.
        masks: (H, W) bool each, the visible pixels.
        outlines: each object's corners, (2 n,) x and y in turn, where the outline is the mask; else None.
    """

    image: npt.NDArray[np.uint8]
    labels: list[int]
    masks: list[Flags]
    outlines: list[Floats | None]


def write_synthetic(root: Path, split: str, *, num_images: int, seed: int = 0) -> None:
    """Write a split unless it is there: ROOT/annotations/instances_SPLIT.json and ROOT/SPLIT/*.jpg.

    Several processes may do so at once: each writes a folder of its own and the first to finish gives it its
    name. The JSON comes last, so that a split which has one is whole.

    Args:
        root: the data set's folder.
        split: goes into the seed, so that splits are of different images.
        num_images: scenes to write.
        seed: of everything.

    Raises:
        DataError: the folder cannot be written to.
    """
    annotations = root / "annotations" / f"instances_{split}.json"
    if annotations.exists():
        return
    logger.info("writing %d synthetic images to %s", num_images, root / split)
    unfinished = root / f"{split}.{uuid.uuid4().hex}.tmp"
    try:
        annotations.parent.mkdir(parents=True, exist_ok=True)
        unfinished.mkdir()
        document = _write_scenes(unfinished, split, num_images, seed)
        temporary = unfinished / "instances.json"
        temporary.write_text(json.dumps(document))
        ready = root / f"{unfinished.name}.json"
        temporary.rename(ready)
        _claim(unfinished, root / split)
        ready.replace(annotations)
    except OSError as error:
        raise DataError(f"cannot write the synthetic data set to {root}: {error}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _claim(unfinished: Path, folder: Path) -> None:
    """Give the folder its name, unless another process has done so with the same images."""
    try:
        unfinished.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise


def _write_scenes(folder: Path, split: str, num_images: int, seed: int) -> dict[str, Any]:
    """Write the images, return the annotation file's content."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(1, num_images + 1):
        scene = make_scene(np.random.default_rng((seed, zlib.crc32(split.encode()), number)))
        name = f"{number:06d}.jpg"
        Image.fromarray(scene.image).save(folder / name, quality=92)
        height, width = scene.image.shape[:2]
        images.append({"id": number, "file_name": name, "height": height, "width": width})
        for label, mask, outline in zip(scene.labels, scene.masks, scene.outlines, strict=True):
            annotation = _annotation(mask, outline)
            ids = {"id": len(annotations) + 1, "image_id": number, "category_id": label + 1}
            annotations.append(ids | annotation)
    return {
        "info": {"description": "LGD synthetic shapes", "version": _VERSION, "seed": seed},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": k, "name": name} for k, name in enumerate(CLASS_NAMES, start=1)],
    }


def _annotation(mask: Flags, outline: Floats | None) -> dict[str, Any]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    x, y = int(columns[0]), int(rows[0])
    segmentation: Any = [np.round(outline, 2).tolist()] if outline is not None else _encode(mask)
    return {
        "bbox": [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y],
        "area": int(mask.sum()),
        "iscrowd": 0,
        "segmentation": segmentation,
    }


def _encode(mask: Flags) -> dict[str, Any]:
    """COCO's run lengths: down the columns, zeros first."""
    flat = mask.T.reshape(-1)
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    bounds = np.concatenate([[0] if not flat[0] else [0, 0], changes, [flat.size]])
    return {"size": list(mask.shape), "counts": np.diff(bounds).tolist()}


def make_scene(generator: np.random.Generator) -> Scene:
    """Draw a scene: a pure function of the generator's state."""
    height, width = _SCENE_SIZES[generator.integers(len(_SCENE_SIZES))]
    canvas = _background(generator, height, width)
    labels: list[int] = []
    masks: list[Flags] = []
    outlines: list[Floats | None] = []
    whole_areas: list[int] = []
    for _ in range(_draw_count(generator)):
        label = int(generator.integers(len(CLASS_NAMES)))
        outline, coverage = _place(generator, label, height, width)
        mask = coverage >= 0.5
        left = [(old & ~mask).sum() / area for old, area in zip(masks, whole_areas, strict=True)]
        if mask.sum() < _MIN_AREA or min(left, default=1) < _MIN_VISIBLE:
            continue
        _paint(generator, canvas, coverage, label)
        for k, old in enumerate(masks):
            if (old & mask).any():
                masks[k], outlines[k] = old & ~mask, None
        labels.append(label)
        masks.append(mask)
        outlines.append(outline)
        whole_areas.append(int(mask.sum()))
    noise = generator.normal(0, generator.uniform(2, 12), canvas.shape)
    return Scene(np.clip(canvas + noise, 0, 255).astype(np.uint8), labels, masks, outlines)


def _draw_count(generator: np.random.Generator) -> int:
    """How many shapes to try: one to seven, and none in a few scenes."""
    return int(generator.integers(1, 8)) * int(generator.random() > _EMPTY_SHARE)


def _background(generator: np.random.Generator, height: int, width: int) -> Floats:
    """Soft blotches of dull colours under a few thin strokes: (H, W, 3), about [0, 255]."""
    greys = generator.uniform(60, 190) + generator.uniform(-30, 30, (6, 6, 1))
    cells = greys + generator.uniform(-15, 15, 3) + generator.uniform(-15, 15, (6, 6, 3))
    channels = [Image.fromarray(cells[..., c].astype(np.float32)) for c in range(3)]
    smooth = [channel.resize((width, height), Image.Resampling.BICUBIC) for channel in channels]
    canvas = np.stack([np.asarray(channel, dtype=np.float64) for channel in smooth], axis=-1)
    for _ in range(int(generator.integers(0, 4))):
        ends = generator.uniform(0, 1, (2, 2)) * (width, height)
        stroke = Image.new("L", (width, height))
        ImageDraw.Draw(stroke).line(ends.reshape(-1).tolist(), fill=255, width=int(generator.integers(1, 5)))
        canvas[np.asarray(stroke) > 0] = generator.uniform(30, 225, 3)
    return canvas


def _place(
    generator: np.random.Generator, label: int, height: int, width: int
) -> tuple[Floats | None, Floats]:
    """Put a shape somewhere: its outline, if that is its mask's, and how much of each pixel it covers."""
    diameter = _SMALLEST * (_LARGEST / _SMALLEST) ** generator.uniform()
    stretch = math.sqrt(generator.uniform(0.8, 1.25))
    angle = generator.uniform(-_MOST_TURNED, _MOST_TURNED)
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    centre = generator.uniform(0.05, 0.95, 2) * (width, height)
    paths = [
        path * (stretch, 1 / stretch) @ turn * (diameter / 2) + centre for path in _SHAPES[CLASS_NAMES[label]]
    ]
    picture = Image.new("L", (width * _SUPERSAMPLING, height * _SUPERSAMPLING))
    for path, fill in zip(paths, (255, 0), strict=False):
        ImageDraw.Draw(picture).polygon((path * _SUPERSAMPLING - 0.5).reshape(-1).tolist(), fill=fill)
    coverage = np.asarray(picture.reduce(_SUPERSAMPLING), dtype=np.float64) / 255
    inside = bool(np.all(paths[0] >= 0) and np.all(paths[0] <= (width, height)))
    return (paths[0].reshape(-1) if inside and len(paths) == 1 else None), coverage


def _paint(generator: np.random.Generator, canvas: Floats, coverage: Floats, label: int) -> None:
    """Lay a surface over the (H, W, 3) canvas where `coverage`, (H, W) in [0, 1], says, in place."""
    rows, columns = np.flatnonzero(coverage.any(axis=1)), np.flatnonzero(coverage.any(axis=0))
    window = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    part, weight = canvas[window], coverage[window][..., None]
    colour = _contrasting_colour(generator, label, part[weight[..., 0] >= 0.5].mean(axis=0))
    surface = colour * _texture(generator, *weight.shape[:2])[..., None]
    part += weight * (surface - part)


def _contrasting_colour(generator: np.random.Generator, label: int, behind: Floats) -> Floats:
    """A vivid colour, mostly one of the class's own, that differs from what it is painted on."""
    while True:
        hue = generator.uniform()
        if generator.random() < _OWN_COLOUR_SHARE:
            hue = (label + generator.uniform(-0.3, 0.3)) / len(CLASS_NAMES)
        vivid = colorsys.hsv_to_rgb(hue % 1, generator.uniform(0.75, 1), generator.uniform(0.65, 1))
        colour = 255 * np.array(vivid)
        if np.abs(colour - behind).sum() >= _MIN_CONTRAST:
            return colour


def _texture(generator: np.random.Generator, height: int, width: int) -> Floats:
    """Brightness of a surface, about 1: plain, striped, chequered, shaded or speckled."""
    kind = int(generator.integers(5))
    depth = generator.uniform(0.1, 0.3)
    angle = generator.uniform(0, 2 * math.pi)
    period = generator.uniform(5, 14)
    speckles = generator.uniform(-1, 1, (height, width))
    y, x = np.mgrid[:height, :width]
    along = x * math.cos(angle) + y * math.sin(angle)
    across = y * math.cos(angle) - x * math.sin(angle)
    stripes = np.sign((along / period) % 1 - 0.5)
    patterns = (
        np.zeros((height, width)),
        stripes,
        stripes * np.sign((across / period) % 1 - 0.5),
        np.clip(2 * along / (abs(along).max() + 1) - 0.5, -1, 1),
        speckles,
    )
    return 1 + depth * patterns[kind]


def _polygon(num_corners: int, radii: tuple[float, ...] = (1.0,), turned: float = 0.0) -> Floats:
    """Corners on circles of these radii in turn, the first on top: (n, 2) x and y."""
    angles = [2 * math.pi * k / num_corners - math.pi / 2 + turned for k in range(num_corners)]
    return np.array(
        [
            (radii[k % len(radii)] * math.cos(a), radii[k % len(radii)] * math.sin(a))
            for k, a in enumerate(angles)
        ]
    )


def _cross(half_width: float) -> Floats:
    """The corners of a plus sign: (12, 2) x and y."""
    arm = [(-half_width, -1.0), (half_width, -1.0), (half_width, -half_width)]
    quarter_turns = ((1, 0), (0, 1), (-1, 0), (0, -1))
    return np.array([(x * c - y * s, x * s + y * c) for c, s in quarter_turns for x, y in arm])


_SHAPES: dict[str, tuple[Floats, ...]] = {
    "disk": (_polygon(40),),
    "square": (_polygon(4, turned=math.pi / 4),),
    "triangle": (_polygon(3),),
    "star": (_polygon(10, (1.0, 0.42)),),
    "ring": (_polygon(40), 0.55 * _polygon(40)),
    "cross": (_cross(0.3),),
}
"""Outlines of radius 1, and what is cut out of them."""
