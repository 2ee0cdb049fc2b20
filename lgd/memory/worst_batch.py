"""The batches of a data set that need the most memory, made up without reading an image.

Legend: B images on a canvas H x W, N objects of each, E edges of an outline.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lgd.data.index import AnnotationIndex, Integers
from lgd.data.mixing import CopyPaste, Mosaic
from lgd.data.outlines import read_outlines
from lgd.data.samplers import aspect_groups
from lgd.data.samples import Augmentation
from lgd.data.transforms import resized_size
from lgd.structures import Batch, Outlines, Targets


def largest_canvases(
    index: AnnotationIndex,
    *,
    min_sizes: Sequence[int],
    max_size: int,
    crops: bool = False,
    filter_empty: bool = True,
    aspect_ratio_grouping: bool = True,
    size_divisibility: int = 32,
) -> list[tuple[int, int]]:
    """Find the largest canvas of landscapes and that of portraits, or the one of both where they mix.

    Each image of a batch may be the highest or the widest of those that it may share a batch with. A single
    image, or a batch of likes, has a smaller canvas; so has a batch of random crops, except where parts
    higher than wide are cut out of landscapes, or the other way round.

    Args:
        index: the data set, with at least one image to train on.
        min_sizes: lengths of the short side that images may be resized to, pixels; 0 leaves them as they are.
        max_size: cap on the long side, pixels.
        crops: whether images are cropped, so that their own shapes say little.
        filter_empty: images without objects don't come.
        aspect_ratio_grouping: images wider than high don't share a batch with others.
        size_divisibility: a canvas is a multiple of so many pixels.

    Returns:
        (height, width) of one canvas or two.
    """
    images = np.flatnonzero(index.counts) if filter_empty else np.arange(len(index))
    sizes = np.unique(np.stack([index.heights[images], index.widths[images]], axis=1), axis=0)
    groups = aspect_groups(sizes[:, 0], sizes[:, 1]) if aspect_ratio_grouping else np.zeros(len(sizes), int)
    min_size = 0 if 0 in min_sizes else max(min_sizes)
    canvases = []
    for group in np.unique(groups):
        members = sizes[groups == group]
        largest = np.max([_grow(size, min_size, max_size, crops) for size in members.tolist()], axis=0)
        height, width = (-(-largest // size_divisibility) * size_divisibility).tolist()
        canvases.append((height, width))
    return canvases


def _grow(size: list[int], min_size: int, max_size: int, crops: bool) -> tuple[int, int]:
    """The image's size after resizing; if cropped, the longest part's of its orientation."""
    height, width = size
    if not crops or min_size == 0:
        return resized_size(height, width, min_size, max_size)
    short, long = min(min_size, max_size), max_size
    return (short, long) if width > height else (long, short)


def most_augmented_objects(index: AnnotationIndex, augmentations: Sequence[Augmentation]) -> int:
    """N of augmented images."""
    most = number = most_objects(index)
    for each in augmentations:
        if isinstance(each, Mosaic) and each.probability:
            number += 3 * most
        elif isinstance(each, CopyPaste) and each.probability:
            number += min(most, each.count[1])
    return number


def most_objects(index: AnnotationIndex) -> int:
    """N: the most objects of an image, at least 1."""
    return max(1, int(index.counts.max(initial=0)))


def most_edges(index: AnnotationIndex) -> tuple[int, int]:
    """E and the parts of the object whose mask has the most corners or runs; each at least 1."""
    columns = index.columns
    points = np.asarray(columns["point_offsets"])[columns["polygon_offsets"]]
    lengths: Integers = np.diff(points) // 2 + np.diff(columns["run_offsets"])
    lengths = np.where(columns["usable"] & ~columns["crowd"], lengths, 0)
    if lengths.max(initial=0) == 0:
        return 1, 1
    longest = int(lengths.argmax())
    image = int(np.searchsorted(columns["annotation_offsets"], longest, side="right")) - 1
    outlines = read_outlines(index, image)
    return max(1, int(outlines.counts.max())), 1 + int(outlines.parts.max())


def worst_batch(
    canvas: tuple[int, int],
    *,
    batch_size: int,
    num_objects: int,
    num_classes: int,
    mask_edges: tuple[int, int] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Batch:
    """Fill a canvas with noise and objects of all sizes; no random number is drawn from torch's generator.

    Args:
        canvas: (H, W), pixels.
        batch_size: B.
        num_objects: N; every image has them all.
        num_classes: K.
        mask_edges: E of every object and the number of its parts; None for no masks.
        dtype: of boxes and outlines.
    """
    height, width = canvas
    generator = torch.Generator().manual_seed(0)
    shape = (batch_size, num_objects)
    extents = 0.02 + 0.48 * torch.rand(*shape, 2, generator=generator, dtype=dtype)
    corners = torch.rand(*shape, 2, generator=generator, dtype=dtype) * (1 - extents)
    boxes = torch.cat([corners, corners + extents], dim=-1) * torch.tensor([width, height] * 2, dtype=dtype)
    sizes = torch.tensor([canvas] * batch_size)
    return Batch(
        images=torch.randint(0, 256, (batch_size, 3, height, width), generator=generator, dtype=torch.uint8),
        sizes=sizes,
        original_sizes=sizes,
        image_ids=torch.arange(batch_size),
        targets=Targets(
            boxes,
            torch.randint(0, num_classes, shape, generator=generator),
            torch.ones(shape, dtype=torch.bool),
            _ellipses(boxes, *mask_edges) if mask_edges else None,
        ),
    )


def _ellipses(boxes: Tensor, num_edges: int, num_parts: int) -> Outlines:
    """Masks of E edges each that fill their (B, N, 4) boxes as ellipses, dealt out to the parts in turn."""
    angles = torch.linspace(0, 2 * math.pi, num_edges + 1, dtype=boxes.dtype)
    circle = torch.stack([angles.cos(), angles.sin()], dim=-1) / 2 + 0.5
    top_left, bottom_right = boxes[..., None, :2], boxes[..., None, 2:]
    corners = top_left + circle * (bottom_right - top_left)
    edges = torch.cat([corners[..., :-1, :], corners[..., 1:, :]], dim=-1)
    parts = (torch.arange(num_edges) % num_parts).expand(edges.shape[:-1])
    return Outlines(edges, parts.contiguous(), num_parts)
