"""A contact sheet: pictures of data sets with their labels drawn in, for a look before training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.utils.data import Dataset

from lgd.data.errors import DataError, ImageError
from lgd.data.images import read_image
from lgd.data.index import AnnotationIndex
from lgd.data.outlines import pad_outlines, read_outlines
from lgd.data.samples import Sample, SmallImage
from lgd.files import replacing
from lgd.inference.captions import class_color, load_font, text_color
from lgd.inference.draw import draw_objects
from lgd.inspect.contents import Contents

MOST_PICTURES = 100
SUFFIXES = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG"}

_WIDEST_SHEET = 2400
_LARGEST_CELL = 640
_GAP = 8
_BACKGROUND = (32, 33, 36)
_SEED = 1
_MOST_CHIPS = 40


Samples = Dataset[Sample | ImageError]
"""Of a set by (image, position)."""


def write_sheet(
    path: Path,
    indices: Sequence[AnnotationIndex],
    contents: Sequence[Contents],
    number: int,
    open_samples: Callable[[AnnotationIndex], Samples] | None = None,
) -> list[str]:
    """Draw `number` pictures of all sets together to `path`, spread over the sets and their classes.

    Args:
        path: a JPEG or PNG to write.
        indices: the sets.
        contents: what each of them holds.
        number: of pictures.
        open_samples: gives a set's samples as training sees them, RGB, to be drawn; None for the files'
            pictures.

    Returns:
        A line for each picture that could not be read.

    Raises:
        DataError: the file cannot be written.
    """
    shares = [len(part) for part in np.array_split(np.arange(number), len(indices))]
    chosen = [
        (index, samples, i)
        for index, content, share in zip(indices, contents, shares, strict=True)
        for samples in [open_samples(index) if open_samples else None]
        for i in choose_pictures(content, share)
    ]
    columns = next(side for side in range(1, MOST_PICTURES + 1) if side * side >= len(chosen))
    cell = min(_LARGEST_CELL, (_WIDEST_SHEET - _GAP) // columns - _GAP)
    panels, problems = [], []
    for position, (index, samples, i) in enumerate(chosen):
        try:
            panels.append(
                _draw(index, i, cell) if samples is None else _draw_sample(index, samples, i, position, cell)
            )
        except ImageError as error:
            problems.append(f"not drawn: {error}")
    sheet = _arrange(panels, columns, cell, _legend(contents, columns * (cell + _GAP) - _GAP))
    try:
        with replacing(path) as file:
            sheet.save(file, SUFFIXES[path.suffix.lower()], quality=92)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror or error}") from error
    return problems


def choose_pictures(contents: Contents, number: int) -> list[int]:
    """Choose pictures, the same each time: of the rarest class one, of the next one, and so on in turn."""
    generator = np.random.default_rng(_SEED)
    order = generator.permutation(contents.images)
    place = np.argsort(order)  # of each image in that order
    by_class = sorted(range(len(contents.classes)), key=lambda label: contents.classes[label].objects)
    queues = [
        sorted(
            set(contents.image_of[contents.labels == label].tolist()), key=lambda i: place[i], reverse=True
        )
        for label in by_class[: 4 * number]
    ]
    chosen: dict[int, None] = {}
    while len(chosen) < number and any(queues):
        for queue in queues:
            while queue and queue[-1] in chosen:
                queue.pop()
            if queue and len(chosen) < number:
                chosen[queue.pop()] = None
    for i in order.tolist():  # without objects, where there are no more with some
        if len(chosen) < number:
            chosen.setdefault(i)
    return list(chosen)


def _draw(index: AnnotationIndex, i: int, cell: int) -> Image.Image:
    labels, crowd = index.labels(i).copy(), index.crowd(i)
    names = [index.class_names[label] for label in labels.tolist()]
    outlines = read_outlines(index, i)
    image = read_image(index.path(i))
    return draw_objects(
        image,
        torch.from_numpy(index.boxes(i)),
        torch.from_numpy(labels),
        [f"{name}, crowd" if is_crowd else name for name, is_crowd in zip(names, crowd, strict=True)],
        outlines=pad_outlines([outlines], len(labels), torch.float64) if len(outlines.edges) else None,
        title=f"{_short(index.file_name(i))}   {image.shape[2]} x {image.shape[1]}   {len(labels)}",
        long_side=cell,
    )


def _draw_sample(index: AnnotationIndex, samples: Samples, i: int, position: int, cell: int) -> Image.Image:
    sample = samples[i, position]
    if isinstance(sample, ImageError):
        raise sample
    image, outlines = sample.image, sample.outlines
    image = image.show() if isinstance(image, SmallImage) else image
    assert isinstance(image, Tensor), "samples to look at are decoded"
    assert outlines is not None, "and have outlines"
    labels = sample.labels
    return draw_objects(
        image,
        sample.boxes,
        labels,
        [index.class_names[label] for label in labels.tolist()],
        outlines=pad_outlines([outlines], len(labels), torch.float64) if len(outlines.edges) else None,
        title=f"{_short(index.file_name(i))}   {image.shape[2]} x {image.shape[1]}   {len(labels)}",
        long_side=cell,
    )


def _short(file_name: str) -> str:
    name = Path(file_name).name
    return name if len(name) <= 30 else f"{name[:14]}...{name[-13:]}"


def _legend(contents: Sequence[Contents], width: int) -> Image.Image:
    """A strip with the names of the sets, and one with their classes in their colours."""
    size = 18
    font = load_font(size)
    line = round(1.7 * size)
    labelled = [(label, each) for one in contents for label, each in enumerate(one.classes) if each.objects]
    names = list(dict.fromkeys((label, each.name) for label, each in labelled))
    strip = Image.new("RGB", (width, line * (3 + len(names[:_MOST_CHIPS]))), _BACKGROUND)
    draw = ImageDraw.Draw(strip)
    draw.text(
        (_GAP, line // 2), "   ".join(each.name for each in contents), (241, 243, 244), font, anchor="lm"
    )
    x, y = _GAP, line
    for label, name in [*names[:_MOST_CHIPS], *([(-1, "...")] if len(names) > _MOST_CHIPS else [])]:
        length = round(draw.textlength(name, font)) + 12
        if x > _GAP and x + length > width:
            x, y = _GAP, y + line
        color = class_color(label) if label >= 0 else _BACKGROUND
        draw.rectangle((x, y + 2, x + length, y + line - 4), fill=color)
        draw.text((x + 6, y + line // 2 - 1), name, text_color(color), font, anchor="lm")
        x += length + _GAP
    return strip.crop((0, 0, width, y + line + _GAP))


def _arrange(panels: Sequence[Image.Image], columns: int, cell: int, legend: Image.Image) -> Image.Image:
    rows = [panels[start : start + columns] for start in range(0, len(panels), columns)]
    heights = [max(panel.height for panel in row) for row in rows]
    total = legend.height + sum(heights) + _GAP * (len(rows) + 1)
    sheet = Image.new("RGB", (columns * (cell + _GAP) + _GAP, total), _BACKGROUND)
    sheet.paste(legend, (_GAP, _GAP))
    y = legend.height + _GAP
    for row, height in zip(rows, heights, strict=True):
        for k, panel in enumerate(row):
            sheet.paste(panel, (_GAP + k * (cell + _GAP), y))
        y += height + _GAP
    return sheet
