"""The annotations of a data set as flat memory-mapped columns: one copy per node, none per worker.

Legend: I images, sorted by id; A annotations, sorted by image and within it in the file's order; P polygons.

Columns of the file: image_ids, heights, widths, counts (I,), file_name_offsets (I + 1,) into file_names
(bytes, UTF-8), written_id_offsets (I + 1,) into written_ids (bytes, JSON; nothing where the annotation file
has the number), annotation_offsets (I + 1,) into the following: xywh (A, 4), labels, annotation_ids, areas,
crowd, difficult, usable (A,), polygon_offsets (A + 1,) into point_offsets (P + 1,) into points (x and y in
turn), run_offsets (A + 1,) into runs; part_offsets, where the images of each joined set begin and the last
end.

Annotations that are not usable are what training drops and COCO's evaluation counts: they are in the columns,
and what is read by image leaves them out.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lgd.data.columns import Array, open_columns, write_columns
from lgd.data.errors import DataError
from lgd.data.folder import make_folder
from lgd.data.remarks import from_metadata
from lgd.data.schema import Kind, check_columns

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Source:
    """Where a data set lies, or one of several that are joined.

    Attributes:
        json_path: the annotation file; of a VOC set, the list of its images, or where there is none the
            folder of its XML files.
        image_dir: the folder of the images.
        layout: how the files lie, in words: "Roboflow (train/_annotations.coco.json beside the pictures)".
    """

    json_path: Path
    image_dir: Path
    layout: str = ""


@dataclass(frozen=True)
class ImageRecord:
    """One image as the annotation file lists it.

    Attributes:
        id: the image's id in the annotation file.
        file_name: path below the image folder.
        height: pixels, of the picture shown upright.
        width: pixels, of the picture shown upright.
    """

    id: int
    file_name: str
    height: int
    width: int


@dataclass(frozen=True)
class RunLengths:
    """A mask in COCO's run-length encoding.

    Attributes:
        height: pixels of the image.
        width: pixels of the image.
        counts: (R,) lengths of the runs of zeros and ones in turn, zeros first, down the columns.
    """

    height: int
    width: int
    counts: npt.NDArray[np.uint32]


Segmentation = tuple[Floats, ...] | RunLengths | None
"""Polygons, each (2 n,) x and y in turn, pixels; or run lengths; or None where there is no mask."""


_PARTS = {
    **dict.fromkeys(("image_ids", "heights", "widths"), "images"),
    **dict.fromkeys(("file_names", "file_name_offsets"), "file names"),
    "labels": "labels",
    **dict.fromkeys(("crowd", "difficult"), "crowds"),
    **dict.fromkeys(("polygon_offsets", "point_offsets", "points", "run_offsets", "runs"), "masks"),
}
"""What columns say; the others, of boxes."""

_WITHOUT_EFFECT = {"annotation_ids", "written_ids", "written_id_offsets"}
"""Columns that nothing in a run hangs on."""


class AnnotationIndex:
    """A data set's images and annotations, read from a mapped file.

    Made by `load_coco`, `load_voc`, `load_yolo` and `load_crowdhuman`.
    Pickling sends the file's path, not the columns, so that processes started afresh map it too.

    Attributes:
        name: what the user calls the set.
        layout: how its files lie, in words; of joined sets, each way once.
        kind: whose format the annotations come in, and whose rules score detections on them.
        sources: where the set lies; of joined sets, each of them.
        json_path: the annotation file of the first.
        image_dir: the folder of the images of the first.
        content_hash: SHA-256 of the annotation file (or files, of which it is one), hexadecimal.
        class_names: the K class names by label.
        category_ids: the annotation file's category id of each label.
        has_annotations: whether the file has annotations at all (test sets may not).
        remarks: of each source, what was dropped or repaired, or will be clipped.
        warnings: the same as lines that name the annotation file.
        cache_path: the mapped file.
        image_ids: (I,) int64, ascending.
        heights: (I,) int64, pixels.
        widths: (I,) int64, pixels.
        counts: (I,) int64, annotations of each image without the crowds.
    """

    def __init__(
        self,
        cache_path: Path,
        *,
        name: str,
        json_path: Path,
        image_dir: Path,
        layout: str = "",
        more: Sequence[Source] = (),
    ) -> None:
        """Map the columns at `cache_path`; raises ValueError or OSError where that is no whole cache.

        Args:
            cache_path: the file of columns.
            name: what messages call the set.
            json_path: the annotation file.
            image_dir: the folder of the images.
            layout: how the files lie, in words.
            more: of joined sets, where those after the first lie.
        """
        columns, metadata = open_columns(cache_path, verify=False)
        check_columns(columns, metadata)
        self.name = name
        self.sources = (Source(json_path, image_dir, layout), *more)
        if not len(self.sources) == len(metadata["remarks"]) == len(columns["part_offsets"]) - 1:
            raise ValueError(f"{cache_path} is of {len(columns['part_offsets']) - 1} data sets")
        self.json_path = json_path
        self.image_dir = image_dir
        self.layout = "; ".join(dict.fromkeys(source.layout for source in self.sources if source.layout))
        self.kind: Kind = metadata["kind"]
        self.content_hash: str = metadata["content_hash"]
        self.class_names: tuple[str, ...] = tuple(metadata["class_names"])
        self.category_ids: tuple[int, ...] = tuple(metadata["category_ids"])
        self.has_annotations: bool = metadata["has_annotations"]
        self.remarks = tuple(map(from_metadata, metadata["remarks"]))
        self.warnings = tuple(
            f"{source.json_path}: {remark.text}"
            for source, remarks in zip(self.sources, self.remarks, strict=True)
            for remark in remarks
        )
        self.image_ids: Integers = columns["image_ids"]
        self.heights: Integers = columns["heights"]
        self.widths: Integers = columns["widths"]
        self.counts: Integers = columns["counts"]
        self.columns = columns
        self.metadata = metadata
        self.cache_path = cache_path

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.image_ids)

    def __reduce__(self) -> tuple[Callable[..., AnnotationIndex], tuple[Any, ...]]:
        """Send the place of the columns instead of the columns, which are put back if they were deleted."""
        if not self.cache_path.exists():
            self._restore()
        return _reopen, (self.cache_path, self.name, self.sources)

    def on_columns(self, cache_path: Path) -> AnnotationIndex:
        """Return the same set of other columns, in the file at `cache_path`."""
        return _reopen(cache_path, self.name, self.sources)

    def _restore(self) -> None:
        try:
            make_folder(self.cache_path.parent)
            write_columns(self.cache_path, self.columns, self.metadata)
        except OSError as error:
            raise DataError(
                f"{self.cache_path} was deleted and cannot be written again: {error.strerror}"
            ) from error

    def image(self, i: int) -> ImageRecord:
        """Return what the annotation file says of image `i`, counted from 0."""
        return ImageRecord(
            int(self.image_ids[i]), self.file_name(i), int(self.heights[i]), int(self.widths[i])
        )

    def file_name(self, i: int) -> str:
        """Return the path of image `i` below the image folder."""
        start, end = self.columns["file_name_offsets"][i : i + 2]
        return self.columns["file_names"][start:end].tobytes().decode()

    def file_names(self) -> list[str]:
        """Return the paths of all images below the image folder."""
        content, offsets = self.columns["file_names"].tobytes(), self.columns["file_name_offsets"].tolist()
        return [content[start:end].decode() for start, end in itertools.pairwise(offsets)]

    def written_ids(self) -> tuple[dict[int, int | str], dict[int, int | str]]:
        """Return ids of images and categories as the annotation file has them, where they are not numbers.

        By the numbers that they have here; of a set with numbers alone, nothing.
        """
        content, bounds = self.columns["written_ids"].tobytes(), self.columns["written_id_offsets"]
        images = {
            int(self.image_ids[i]): json.loads(content[bounds[i] : bounds[i + 1]])
            for i in np.flatnonzero(np.diff(bounds)).tolist()
        }
        categories = self.metadata.get("written_category_ids", {})
        return images, {int(number): written for number, written in categories.items()}

    def source(self, i: int) -> Source:
        """Return where image `i` comes from."""
        return self.sources[np.searchsorted(self.columns["part_offsets"], i, side="right") - 1]

    def path(self, i: int) -> Path:
        """Return the path of image `i`."""
        return self.source(i).image_dir / self.file_name(i)

    def rows(self, i: int) -> slice | Integers:
        """Where the G annotations of image `i` that are usable stand in the columns."""
        start, end = self.columns["annotation_offsets"][i : i + 2].tolist()
        usable = self.columns["usable"][start:end]
        return slice(start, end) if usable.all() else start + np.flatnonzero(usable)

    def boxes(self, i: int) -> Floats:
        """Boxes of image `i`: (G, 4) xyxy, pixels of the upright picture, as in the file: not clipped."""
        xywh = self._of_image("xywh", i)
        return np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)

    def labels(self, i: int) -> Integers:
        """Labels of image `i`: (G,) in [0, K); K of crowds of every class."""
        return self._of_image("labels", i)

    def crowd(self, i: int) -> Flags:
        """Which annotations of image `i` are crowd regions: (G,)."""
        return self._of_image("crowd", i)

    def difficult(self, i: int) -> Flags:
        """Which annotations of image `i` are marked difficult (VOC): (G,); trained on, but not counted."""
        return self._of_image("difficult", i)

    def area(self, i: int) -> Floats:
        """Areas of image `i`'s annotations as in the file: (G,), square pixels."""
        return self._of_image("areas", i)

    def annotation_ids(self, i: int) -> Integers:
        """Ids of image `i`'s annotations in the annotation file: (G,)."""
        return self._of_image("annotation_ids", i)

    def segmentation(self, i: int) -> list[Segmentation]:
        """Masks of image `i`'s annotations: G of them."""
        rows = self.rows(i)
        numbers = range(rows.start, rows.stop) if isinstance(rows, slice) else rows.tolist()
        return [self.mask(i, annotation) for annotation in numbers]

    def hash_parts(self) -> dict[str, str]:
        """SHA-256, hexadecimal, of each part of what the columns say, wherever and however it is kept."""
        parts: dict[str, list[str]] = {}
        for name in sorted(self.columns.keys() - _WITHOUT_EFFECT):
            parts.setdefault(_PARTS.get(name, "boxes"), []).append(name)
        return {part: self._hash_columns(names) for part, names in parts.items()}

    def _hash_columns(self, names: Sequence[str]) -> str:
        digest = hashlib.sha256()
        for name in names:
            column = np.ascontiguousarray(self.columns[name])
            digest.update(f"{name} {column.dtype.str} {column.shape}\n".encode())
            digest.update(column.data.cast("B") if column.size else b"")
        return digest.hexdigest()

    def mask(self, i: int, annotation: int) -> Segmentation:
        """Return the mask of the annotation of image `i` that stands in row `annotation` of the columns."""
        start, end = self.columns["run_offsets"][annotation : annotation + 2]
        if end > start:
            return RunLengths(int(self.heights[i]), int(self.widths[i]), self.columns["runs"][start:end])
        start, end = self.columns["polygon_offsets"][annotation : annotation + 2]
        bounds = self.columns["point_offsets"][start : end + 1]
        points = self.columns["points"]
        return tuple(points[a:b] for a, b in itertools.pairwise(bounds)) or None

    def _of_image(self, column: str, i: int) -> Array:
        return self.columns[column][self.rows(i)]


def _reopen(cache_path: Path, name: str, sources: Sequence[Source]) -> AnnotationIndex:
    first, *more = sources
    return AnnotationIndex(
        cache_path,
        name=name,
        json_path=first.json_path,
        image_dir=first.image_dir,
        layout=first.layout,
        more=more,
    )
