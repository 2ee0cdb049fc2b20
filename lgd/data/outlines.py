"""Instance masks as edges: from an index's columns or from polygons, through selection, to a padded batch.

A polygon's edges are its sides. A run-length mask has the upper and lower borders of its runs; the sides of
the runs need no edges, since rasterising (`lgd.ops.polygons`) toggles columns and nothing crosses a column
along them. At the image's own size these edges give back the mask to the pixel.

Legend: T edges of all objects of an image, G objects, B images, N object slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lgd.data.errors import DataError
from lgd.data.index import AnnotationIndex, Floats, Integers
from lgd.data.segmentations import BROKEN
from lgd.structures import Outlines

_WAYS_OUT = (
    "mend or remove them, or go without masks (MODEL.MASK_ON False, "
    "MODEL.DISTILLATOR.LABEL_ENCODER.LOAD_LABELMAP False)"
)


@dataclass(frozen=True)
class ImageOutlines:
    """The masks of one image's objects, the edges of one object after those of another.

    Attributes:
        edges: (T, 4) float64, x1 y1 x2 y2, pixels.
        parts: (T,) int64, which of its object's parts each edge belongs to (see `lgd.structures.Outlines`).
        counts: (G,) int64, edges of each object.
    """

    edges: Tensor
    parts: Tensor
    counts: Tensor


def read_outlines(index: AnnotationIndex, i: int) -> ImageOutlines:
    """Read the masks of image `i`'s annotations, crowds included; one without a mask has no edges."""
    start, end = index.columns["annotation_offsets"][i : i + 2].tolist()
    outlines = _read_rows(index, i, start, end)
    usable = torch.from_numpy(index.columns["usable"][start:end].copy())
    return outlines if usable.all() else select_outlines(outlines, usable)


def _read_rows(index: AnnotationIndex, i: int, start: int, end: int) -> ImageOutlines:
    """All that stand in these rows of the columns, usable or not."""
    columns = index.columns
    run_offsets = columns["run_offsets"][start : end + 1]
    polygon_offsets = columns["polygon_offsets"][start : end + 1]
    point_offsets = columns["point_offsets"][polygon_offsets[0] : polygon_offsets[-1] + 1]
    points = columns["points"][point_offsets[0] : point_offsets[-1]].reshape(-1, 2)
    by_polygons = _polygon_edges(points, np.diff(point_offsets) // 2, np.diff(polygon_offsets))
    if run_offsets[0] == run_offsets[-1]:
        return by_polygons
    runs = columns["runs"][run_offsets[0] : run_offsets[-1]]
    by_runs = _run_edges(runs, np.diff(run_offsets), int(index.heights[i]), int(index.widths[i]))
    return _merge(by_polygons, by_runs)


def select_outlines(outlines: ImageOutlines, keep: Tensor) -> ImageOutlines:
    """Keep the objects that `keep`, (G,) bool, marks."""
    kept = keep.repeat_interleave(outlines.counts)
    return ImageOutlines(outlines.edges[kept], outlines.parts[kept], outlines.counts[keep])


def join_outlines(images: Sequence[ImageOutlines]) -> ImageOutlines:
    """The masks of the first image's objects, then those of the next one's, all on one image."""
    return ImageOutlines(
        torch.cat([image.edges for image in images]),
        torch.cat([image.parts for image in images]),
        torch.cat([image.counts for image in images]),
    )


def close_outlines(outlines: ImageOutlines) -> ImageOutlines:
    """Add the upright sides that run-length masks go without, as they need them once they are turned.

    Along an upright line the sides lie between the first and the second end of edges, the third and the
    fourth and so on, ends that come twice left out: of polygons, which are closed, none are left.
    """
    owner = np.arange(len(outlines.counts)).repeat(outlines.counts.numpy())
    part = outlines.parts.numpy()
    ends = np.concatenate([outlines.edges[:, :2].numpy(), outlines.edges[:, 2:].numpy()])
    keys = np.column_stack([np.tile(owner, 2), np.tile(part, 2), ends])
    keys, times = np.unique(keys, axis=0, return_counts=True)
    odd = keys[times % 2 == 1]
    upper, lower = odd[::2], odd[1::2]
    assert np.array_equal(upper[:, :3], lower[:, :3]), "edges of outlines have two ends"
    sides = np.column_stack([upper[:, 2:], lower[:, 2:]])
    order = np.argsort(np.concatenate([owner, upper[:, 0]]), kind="stable")
    return ImageOutlines(
        torch.cat([outlines.edges, torch.from_numpy(sides)])[order],
        torch.cat([outlines.parts, torch.from_numpy(upper[:, 1].astype(np.int64))])[order],
        outlines.counts
        + torch.from_numpy(np.bincount(upper[:, 0].astype(np.int64), minlength=len(outlines.counts))),
    )


def pad_outlines(images: Sequence[ImageOutlines], num_slots: int, dtype: torch.dtype) -> Outlines:
    """Pad the masks of B images.

    Args:
        images: B of them, each with at most N objects.
        num_slots: N.
        dtype: of the edges.
    """
    num_edges = max([1, *(int(image.counts.max()) for image in images if len(image.counts))])
    num_parts = max([1, *(int(image.parts.max()) + 1 for image in images if len(image.parts))])
    edges = torch.zeros(len(images), num_slots, num_edges, 4, dtype=dtype)
    parts = torch.zeros(len(images), num_slots, num_edges, dtype=torch.int64)
    for b, image in enumerate(images):
        slots = torch.arange(len(image.counts)).repeat_interleave(image.counts)
        starts = (image.counts.cumsum(0) - image.counts).repeat_interleave(image.counts)
        places = torch.arange(len(image.edges)) - starts
        edges[b, slots, places] = image.edges.to(dtype)
        parts[b, slots, places] = image.parts
    return Outlines(edges, parts, num_parts)


def polygons_to_outlines(
    polygons: Sequence[Sequence[Sequence[Sequence[float]]]], num_slots: int, dtype: torch.dtype
) -> Outlines:
    """Pad the masks of a batch that are given as polygons.

    Args:
        polygons: of each image, of each object: its polygons, x and y in turn, pixels of the canvas.
        num_slots: N.
        dtype: of the edges.

    Raises:
        ValueError: a polygon has fewer than three corners, or an odd number of coordinates.
    """
    return pad_outlines([_from_lists(objects) for objects in polygons], num_slots, dtype)


def require_masks(index: AnnotationIndex) -> None:
    """See that every annotation that is not a crowd has a mask, and that none is broken.

    Raises:
        DataError: some have none, or were left out as broken.
    """
    for source, remarks in zip(index.sources, index.remarks, strict=True):
        broken = next((remark for remark in remarks if remark.kind == BROKEN), None)
        if broken is not None:
            raise DataError(f"{source.json_path}: {broken.text}; {_WAYS_OUT}")
    columns = index.columns
    num_runs, num_polygons = np.diff(columns["run_offsets"]), np.diff(columns["polygon_offsets"])
    has_none = (num_runs == 0) & (num_polygons == 0)
    lacking = np.flatnonzero(has_none & columns["usable"] & ~columns["crowd"])
    if lacking.size == 0:
        return
    images = np.searchsorted(columns["annotation_offsets"], lacking[:3], side="right") - 1
    named = ", ".join(
        f"{columns['annotation_ids'][annotation]} (image {index.image_ids[image]})"
        for annotation, image in zip(lacking[:3], images, strict=True)
    )
    more = f" and {lacking.size - 3} more" if lacking.size > 3 else ""
    source = index.source(int(images[0]))
    raise DataError(
        f'{source.json_path}: annotations {named}{more} have no mask: no "segmentation", or only '
        f"polygons of fewer than three points; {_WAYS_OUT}"
    )


def _from_lists(objects: Sequence[Sequence[Sequence[float]]]) -> ImageOutlines:
    corners = [np.asarray(polygon, dtype=np.float64) for polygons in objects for polygon in polygons]
    for coordinates in corners:
        if coordinates.size < 6 or coordinates.size % 2:
            raise ValueError(
                f"a polygon has {coordinates.size} coordinates; give x and y of three corners or more"
            )
    points = np.concatenate([np.zeros(0), *corners]).reshape(-1, 2)
    num_corners = np.array([coordinates.size // 2 for coordinates in corners], dtype=np.int64)
    return _polygon_edges(
        points, num_corners, np.array([len(polygons) for polygons in objects], dtype=np.int64)
    )


def _polygon_edges(points: Floats, num_corners: Integers, num_polygons: Integers) -> ImageOutlines:
    """Join corners to edges.

    Args:
        points: (T, 2) corners of all polygons, x and y.
        num_corners: of each polygon, at least 1.
        num_polygons: (G,) of each object.
    """
    last = np.cumsum(num_corners) - 1
    following = np.arange(1, len(points) + 1)
    following[last] = last - num_corners + 1
    part = np.arange(len(num_corners)) - np.repeat(np.cumsum(num_polygons) - num_polygons, num_polygons)
    owner = np.repeat(np.arange(len(num_polygons)), num_polygons)
    counts = np.bincount(np.repeat(owner, num_corners), minlength=len(num_polygons))
    return ImageOutlines(
        torch.from_numpy(np.concatenate([points, points[following]], axis=1)),
        torch.from_numpy(np.repeat(part, num_corners)),
        torch.from_numpy(counts),
    )


def _run_edges(runs: Integers, num_runs: Integers, height: int, width: int) -> ImageOutlines:
    """Find the upper and lower borders of run-length masks.

    Args:
        runs: lengths of all masks' runs of zeros and ones in turn, down the columns.
        num_runs: (G,) of each object; those without make no edges.
        height: pixels of the image.
        width: pixels of the image.
    """
    owner = np.repeat(np.arange(len(num_runs)), num_runs)
    place = np.arange(len(runs)) - np.repeat(np.cumsum(num_runs) - num_runs, num_runs)
    # All masks behind one another fill whole columns of one tall strip, since each fills its image.
    ends = np.cumsum(runs, dtype=np.int64)
    is_object = (place % 2 == 1) & (runs > 0)
    owner, starts, ends = owner[is_object], (ends - runs)[is_object], ends[is_object]
    # A run that goes on in the next column is one run in each.
    first, last = starts // height, (ends - 1) // height
    num_columns = last - first + 1
    run = np.repeat(np.arange(len(first)), num_columns)
    column = np.arange(len(run)) - np.repeat(np.cumsum(num_columns) - num_columns, num_columns) + first[run]
    upper = np.where(column == first[run], starts[run] - column * height, 0)
    lower = np.where(column == last[run], ends[run] - column * height, height)
    # By object, row and column in one number, borders that continue each other are neighbours.
    row = owner[run] * (height + 1) + np.stack([upper, lower])
    borders = np.sort((row * (width + 1) + column % width).reshape(-1))
    heads = np.flatnonzero(np.diff(borders, prepend=-2) != 1)
    lengths = np.diff(heads, append=len(borders))
    row, x = np.divmod(borders[heads], width + 1)
    owner, y = np.divmod(row, height + 1)
    return ImageOutlines(
        torch.from_numpy(np.stack([x, y, x + lengths, y], axis=1).astype(np.float64)),
        torch.zeros(len(x), dtype=torch.int64),
        torch.from_numpy(np.bincount(owner, minlength=len(num_runs))),
    )


def _merge(first: ImageOutlines, second: ImageOutlines) -> ImageOutlines:
    """Unite outlines of the same G objects, of which each has edges in one of the two at most."""
    owners = torch.cat([torch.arange(len(x.counts)).repeat_interleave(x.counts) for x in (first, second)])
    order = owners.argsort(stable=True)
    return ImageOutlines(
        torch.cat([first.edges, second.edges])[order],
        torch.cat([first.parts, second.parts])[order],
        first.counts + second.counts,
    )
