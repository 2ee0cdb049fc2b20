"""What a data set holds: counts and sizes, from the columns of its index alone.

Legend: I images, K classes, N objects: annotations that are usable and no crowds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lgd.data.index import AnnotationIndex, Floats, Integers
from lgd.data.limits import name_some
from lgd.data.remarks import Remark
from lgd.words import counted

FEW_OBJECTS = 10
"""A class of fewer objects is worth a word."""


@dataclass(frozen=True)
class ClassCount:
    """One class: its name, how many objects it has, and in how many images."""

    name: str
    objects: int
    images: int


@dataclass(frozen=True)
class Contents:
    """What a data set holds.

    Attributes:
        name: what the user calls the set.
        layout: how the set lies on the disk.
        crowds: regions to ignore.
        difficult: objects that are trained on but not counted (VOC).
        masked: objects with a mask.
        classes: K of them, by label.
        heights: (I,) pixels.
        widths: (I,) pixels.
        per_image: (I,) objects of each image.
        image_of: (N,) the place of each object's image, ascending.
        labels: (N,) in [0, K).
        sides: (N, 2) width and height of each box within its image, pixels.
        remarks: what the reader dropped or repaired.
        has_annotations: whether the annotation file has annotations at all.
    """

    name: str
    layout: str
    crowds: int
    difficult: int
    masked: int
    classes: tuple[ClassCount, ...]
    heights: Integers
    widths: Integers
    per_image: Integers
    image_of: Integers
    labels: Integers
    sides: Floats
    remarks: tuple[Remark, ...]
    has_annotations: bool

    @property
    def images(self) -> int:
        """I."""
        return len(self.heights)

    @property
    def objects(self) -> int:
        """N."""
        return len(self.labels)

    @property
    def used_images(self) -> int:
        """Images with objects: those that training takes."""
        return int(np.count_nonzero(self.per_image))

    @property
    def box_sizes(self) -> Floats:
        """(N,) square roots of the boxes' areas, pixels."""
        sizes: Floats = np.sqrt(self.sides.prod(axis=1))
        return sizes

    @property
    def short_sides(self) -> Integers:
        """(I,) short side of each image, pixels."""
        return np.minimum(self.heights, self.widths)


def read_contents(index: AnnotationIndex) -> Contents:
    """Count and measure what `index` holds, without a look at the pictures."""
    columns, num_images = index.columns, len(index)
    usable, crowd = columns["usable"], columns["crowd"]
    keep = usable & ~crowd
    image_of = np.repeat(np.arange(num_images), np.diff(columns["annotation_offsets"]))[keep]
    labels = columns["labels"][keep]
    has_mask = (np.diff(columns["run_offsets"]) > 0) | (np.diff(columns["polygon_offsets"]) > 0)
    return Contents(
        name=index.name,
        layout=index.layout,
        crowds=int((usable & crowd).sum()),
        difficult=int(columns["difficult"][keep].sum()),
        masked=int((has_mask & keep).sum()),
        classes=_count_classes(index.class_names, labels, image_of, num_images),
        heights=index.heights,
        widths=index.widths,
        per_image=np.bincount(image_of, minlength=num_images),
        image_of=image_of,
        labels=labels,
        sides=_sides(columns["xywh"][keep], index.widths[image_of], index.heights[image_of]),
        remarks=tuple(remark for remarks in index.remarks for remark in remarks),
        has_annotations=index.has_annotations,
    )


def _count_classes(
    names: tuple[str, ...], labels: Integers, image_of: Integers, num_images: int
) -> tuple[ClassCount, ...]:
    objects = np.bincount(labels, minlength=len(names))
    pairs = np.unique(labels * num_images + image_of)
    images = np.bincount(pairs // max(1, num_images), minlength=len(names))
    return tuple(map(ClassCount, names, objects.tolist(), images.tolist()))


def _sides(xywh: Floats, widths: Integers, heights: Integers) -> Floats:
    limits = np.stack([widths, heights], axis=1)
    return np.clip(xywh[:, :2] + xywh[:, 2:], 0, limits) - np.clip(xywh[:, :2], 0, limits)


def find_doubts(contents: Contents) -> list[str]:
    """Say, a line each, what may be meant but is worth a look before training."""
    counts = {each.name: each.objects for each in contents.classes}
    absent = [name for name, count in counts.items() if count == 0]
    few = [f"{name} ({count})" for name, count in counts.items() if 0 < count < FEW_OBJECTS]
    sides = contents.sides
    image_sides = np.stack([contents.widths, contents.heights], axis=1)[contents.image_of]
    whole = int((sides >= 0.98 * image_sides).all(axis=1).sum())
    tiny = int((sides.min(axis=1, initial=np.inf) < 2).sum())
    doubts = []
    if absent:
        doubts.append(f"classes without an object, {len(absent)}: {name_some(absent)}")
    if few:
        doubts.append(f"classes of fewer than {FEW_OBJECTS} objects, {len(few)}: {name_some(few)}")
    if tiny:
        doubts.append(f"boxes less than 2 pixels wide or high: {tiny}")
    if whole > 0.2 * contents.objects:
        doubts.append(f"boxes as large as their picture: {whole} of {contents.objects}")
    if 0 < contents.masked < contents.objects:
        doubts.append(f"objects without a mask: {contents.objects - contents.masked} of {contents.objects}")
    return doubts


def compare_classes(contents: Contents, first: Contents) -> list[str]:
    """Say, a line each, which classes only one of two sets has; their order does not matter."""
    own, others = ({each.name: None for each in one.classes} for one in (contents, first))
    lacking = [name for name in others if name not in own]
    further = [name for name in own if name not in others]
    lines = (
        [f"classes of {first.name} that are not here, {len(lacking)}: {name_some(lacking)}"]
        if lacking
        else []
    )
    if further:
        lines.append(f"classes that {first.name} does not have, {len(further)}: {name_some(further)}")
    return lines


def find_obstacle(contents: Contents) -> str | None:
    """Why nothing can be trained on these contents; None where it can."""
    if contents.objects:
        return None
    if contents.images == 0:
        return f"{contents.name}: there are no images to train on"
    if not contents.has_annotations:
        return f"{contents.name}: the annotation file has no annotations, so there is nothing to train on"
    crowds = f", only {counted(contents.crowds, 'crowd')}" if contents.crowds else ""
    return f"{contents.name}: there are no objects to train on{crowds}"
