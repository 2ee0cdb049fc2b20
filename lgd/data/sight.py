"""What is still in sight of a sample's objects where the picture is cut or something is put over it.

Labels say what is in sight: a mask loses the pixels that are covered or cut off, a box is the one around the
rest, and an object of which too little is left has no label. An object that nothing has come over keeps its
box and its outline as they are.

Legend: h x w the image, G objects.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from lgd.data.annotations import MIN_SIDE
from lgd.data.index import Flags, Floats
from lgd.data.outlines import ImageOutlines, join_outlines, select_outlines
from lgd.data.samples import Sample, SmallImage
from lgd.data.transforms import Window, resize_image
from lgd.ops.polygons import mask_edges, rasterize_on_grid

FILL = 128
"""What is painted where there is no picture: a middle grey, to which edges are weak."""


@dataclass(frozen=True)
class _Object:
    """One object of a sample: its box (4,), the edges of its outline (T, 4), and their parts (T,)."""

    box: Floats
    edges: Tensor
    parts: Tensor

    def mask(self, window: Window) -> Flags:
        """Its pixels in a part of the image, (height, width): its outline's, or without one its box's."""
        top, left, height, width = window
        if len(self.edges) == 0:
            x1, y1, x2, y2 = self.box - np.array([left, top, left, top])
            mask = np.zeros((height, width), dtype=bool)
            mask[max(0, math.floor(y1)) : math.ceil(y2), max(0, math.floor(x1)) : math.ceil(x2)] = True
            return mask
        shape, num_parts = (height, width), int(self.parts.max()) + 1
        edges = self.edges - self.edges.new_tensor([left, top, left, top])
        sizes = torch.tensor([shape])
        drawn = rasterize_on_grid(edges[None, None], self.parts[None, None], num_parts, sizes, shape, shape)
        return np.asarray(drawn[0, 0].numpy(), dtype=bool)

    def reach(self) -> Floats:
        """The box around its outline, or without one its own."""
        if len(self.edges) == 0:
            return self.box
        corners = self.edges.numpy().reshape(-1, 2)
        return np.concatenate([corners.min(axis=0), corners.max(axis=0)])


def outlines_of(sample: Sample) -> ImageOutlines:
    """The outlines of a sample that is being augmented."""
    assert sample.outlines is not None, "augmentations are given outlines"
    return sample.outlines


def pixels_of(sample: Sample, size: tuple[int, int] | None = None) -> Tensor:
    """The sample's image, (3, h, w) uint8, or resized to (height, width)."""
    image = sample.image
    if isinstance(image, SmallImage):
        return (image if size is None else replace(image, view=replace(image.view, size=size))).show()
    assert isinstance(image, Tensor), "augmentations are given decoded images"
    return image if size is None or size == sample.size else resize_image(image, size)


def select_objects(sample: Sample, keep: Tensor) -> Sample:
    """Keep the objects that `keep`, (G,) bool, marks."""
    outlines = select_outlines(outlines_of(sample), keep)
    return replace(sample, boxes=sample.boxes[keep], labels=sample.labels[keep], outlines=outlines)


def join_objects(image: Tensor, samples: Sequence[Sample]) -> Sample:
    """The first sample with this image, and the objects of all of them, which lie where they are on it."""
    return replace(
        samples[0],
        image=image,
        boxes=torch.cat([sample.boxes for sample in samples]),
        labels=torch.cat([sample.labels for sample in samples]),
        outlines=join_outlines([outlines_of(sample) for sample in samples]),
    )


def move_objects(sample: Sample, scale: tuple[float, float], corner: tuple[float, float]) -> Sample:
    """Scale boxes and outlines by (y, x) and put their origin at `corner` (y, x), pixels; the image stays."""
    factors = torch.tensor([scale[1], scale[0]] * 2, dtype=torch.float64)
    offsets = torch.tensor([corner[1], corner[0]] * 2, dtype=torch.float64)
    outlines = outlines_of(sample)
    return replace(
        sample,
        boxes=sample.boxes * factors + offsets,
        outlines=replace(outlines, edges=outlines.edges * factors + offsets),
    )


def put_in_frame(
    sample: Sample,
    *,
    size: tuple[int, int],
    frame: tuple[int, int],
    corner: tuple[int, int],
    min_visible: float,
) -> Sample:
    """Resize a sample and put it into a frame, which cuts it off and is grey where it does not reach.

    Args:
        sample: of any size.
        size: (height, width) that it is resized to, pixels.
        frame: (height, width) of what comes out, pixels.
        corner: (y, x) of its top left corner in the frame, pixels.
        min_visible: see `stay_in_sight`.
    """
    (height, width), (rows, columns), (top, left) = size, frame, corner
    image = pixels_of(sample, size)
    if (size, corner) != (frame, (0, 0)):
        framed = image.new_full((3, *frame), FILL)
        y, x = max(0, top), max(0, left)
        bottom, right = min(rows, top + height), min(columns, left + width)
        if bottom > y and right > x:
            framed[:, y:bottom, x:right] = image[:, y - top : bottom - top, x - left : right - left]
        image = framed
    scale = height / sample.size[0], width / sample.size[1]
    moved = replace(move_objects(sample, scale, corner), image=image)
    return stay_in_sight(moved, min_visible=min_visible)


def draw_masks(sample: Sample) -> Flags:
    """The pixels of all objects, (h, w): of their outlines, or where they have none of their boxes."""
    height, width = sample.size
    drawn = np.zeros((height, width), dtype=bool)
    for each in _objects(sample):
        window = _window(each.reach(), height, width)
        if window is not None:
            top, left, rows, columns = window
            drawn[top : top + rows, left : left + columns] |= each.mask(window)
    return drawn


def stay_in_sight(sample: Sample, *, covered: Flags | None = None, min_visible: float) -> Sample:
    """Let labels say what is in sight.

    Args:
        sample: boxes and outlines may reach beyond its image.
        covered: (h, w) pixels that something else has come over; None for none.
        min_visible: an object is left out where nothing of it, or less than this share, is in sight: the
            share of its box that lies on the image, times that of its pixels there that are not covered.
    """
    kept, boxes, edges, parts = [], [np.zeros((0, 4))], [torch.zeros(0, 4, dtype=torch.float64)], []
    for number, each in enumerate(_objects(sample)):
        seen, share = _look_at(each, sample.size, covered)
        if seen is not None and share >= min_visible and np.all(seen.box[2:] - seen.box[:2] > MIN_SIDE):
            kept.append(number)
            boxes.append(seen.box[None])
            edges.append(seen.edges)
            parts.append(seen.parts)
    return replace(
        sample,
        boxes=torch.from_numpy(np.concatenate(boxes)),
        labels=sample.labels[kept],
        outlines=ImageOutlines(
            torch.cat(edges),
            torch.cat([torch.zeros(0, dtype=torch.int64), *parts]),
            torch.tensor([len(each) for each in parts], dtype=torch.int64),
        ),
    )


def _objects(sample: Sample) -> list[_Object]:
    outlines = outlines_of(sample)
    counts = outlines.counts.tolist()
    edges, parts = torch.split(outlines.edges, counts), torch.split(outlines.parts, counts)
    return [_Object(*each) for each in zip(sample.boxes.numpy(), edges, parts, strict=True)]


def _look_at(each: _Object, size: tuple[int, int], covered: Flags | None) -> tuple[_Object | None, float]:
    """The object as it is in sight, None where nothing of it is, and which share that is."""
    height, width = size
    box = each.box.clip(0, np.array([width, height, width, height]))
    share = _area(box) / _area(each.box)
    reach = each.reach()
    window = _window(reach, height, width)
    if share == 0 or window is None:
        return None, 0.0
    top, left, rows, columns = window
    hidden = None if covered is None else covered[top : top + rows, left : left + columns]
    is_hidden = hidden is not None and bool(hidden.any())
    if len(each.edges) == 0:
        if hidden is None or not is_hidden:
            return replace(each, box=box), share
        return _uncover_box(each, box, window, ~hidden, share)
    is_cut = bool(np.any(reach[:2] < 0) or reach[2] > width or reach[3] > height)
    if not is_cut and not is_hidden:
        return replace(each, box=box), share
    mask = each.mask(window)
    visible = mask if hidden is None else mask & ~hidden
    if not visible.any():
        return None, 0.0
    num_visible, num_pixels = np.count_nonzero(visible), np.count_nonzero(mask)
    if not is_cut and num_visible == num_pixels:
        return replace(each, box=box), share
    edges = mask_edges(torch.from_numpy(visible)) + torch.tensor([left, top, left, top])
    around = _bounds(visible) + np.array([left, top, left, top])
    seen = _Object(around, edges, torch.zeros(len(edges), dtype=torch.int64))
    return seen, share * num_visible / num_pixels


def _uncover_box(
    each: _Object, box: Floats, window: Window, visible: Flags, share: float
) -> tuple[_Object | None, float]:
    """What is left of a box of which only the pixels of a window that are `visible` are in sight."""
    if not visible.any():
        return None, 0.0
    top, left, rows, columns = window
    around = _bounds(visible) + np.array([left, top, left, top])
    y, x = top + np.arange(rows), left + np.arange(columns)
    heights = np.minimum(y + 1, box[3]) - np.maximum(y, box[1])
    widths = np.minimum(x + 1, box[2]) - np.maximum(x, box[0])
    left_over = float(heights @ visible @ widths) / _area(box)
    rest = np.concatenate([np.maximum(box[:2], around[:2]), np.minimum(box[2:], around[2:])])
    return replace(each, box=rest), share * left_over


def _window(reach: Floats, height: int, width: int) -> Window | None:
    """The pixels of an image that a box has a part of; None where it has of none."""
    left, top = (max(0, math.floor(side)) for side in reach[:2])
    right, bottom = min(width, math.ceil(reach[2])), min(height, math.ceil(reach[3]))
    return Window(top, left, bottom - top, right - left) if bottom > top and right > left else None


def _bounds(mask: Flags) -> Floats:
    """The box around the pixels of a mask that has some."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=np.float64)


def _area(box: Floats) -> float:
    return float(max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1]))
