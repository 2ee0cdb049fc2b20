"""The masks of COCO-style annotations as flat columns: polygons and run-length encodings.

Legend: A annotations, P polygons of all of them.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lgd.data.columns import Array
from lgd.data.limits import MAX_SIDE, name_some, shown
from lgd.data.remarks import Remark
from lgd.words import counted

BROKEN = "masks_broken"
"""The kind of the remark on masks that cannot be read: no harm where none are, an error where they are."""


def segmentation_columns(
    records: Sequence[Mapping[str, Any]],
    heights: npt.NDArray[np.int64],
    widths: npt.NDArray[np.int64],
    ids: Sequence[int],
) -> tuple[dict[str, Array], list[Remark]]:
    """Flatten the masks of A annotations.

    A polygon is a list of numbers, x and y in turn, or of pairs; a single one need not be in a list. Polygons
    of fewer than three points are dropped and counted, and so are masks that are neither polygons nor RLE,
    not finite, far outside their image or not of its size: the annotation keeps its box.

    Args:
        records: the annotations; "segmentation" is a list of polygons, an RLE, or absent.
        heights: (A,) of their images, pixels.
        widths: (A,) of their images, pixels.
        ids: A ids, for messages.

    Returns:
        polygon_offsets, point_offsets, points, run_offsets, runs (see `lgd.data.index`), and the remarks.
    """
    masks = _Masks([], {})
    columns = masks.flatten(records, heights, widths)
    if far := _far_points(columns):
        masks = _Masks([], far)
        columns = masks.flatten(records, heights, widths)
    remarks = []
    if masks.short:
        named = name_some([ids[row] for row in masks.short])
        text = (
            f"dropped {counted(len(masks.short), 'polygon')} of fewer than three points (annotations {named})"
        )
        remarks.append(Remark("polygons_too_short", len(masks.short), text))
    if masks.broken:
        rows = sorted(masks.broken)
        named = name_some([ids[row] for row in rows])
        text = (
            f"{counted(len(rows), 'annotation has', 'annotations have')} a broken segmentation, which is "
            f"left out: annotation {ids[rows[0]]}: {masks.broken[rows[0]]} (annotations {named})"
        )
        remarks.append(Remark(BROKEN, len(rows), text))
    return columns, remarks


def is_empty(segmentation: Any) -> bool:
    """Whether it says that there is no mask: absent, [], or a list of nothing but []."""
    if not segmentation:
        return True
    return isinstance(segmentation, list) and _is_nested(segmentation) and not any(segmentation)


def box_of_mask(columns: Mapping[str, Array], row: int, height: int) -> list[float] | None:
    """x, y, width and height around the mask of the annotation in this row; None where it has none.

    Args:
        columns: as from `segmentation_columns`.
        row: which annotation.
        height: of its image, pixels.
    """
    start, end = columns["run_offsets"][row : row + 2]
    if end > start:
        return _box_of_runs(columns["runs"][start:end].astype(np.int64), height)
    start, end = columns["point_offsets"][columns["polygon_offsets"][row : row + 2]]
    if end == start:
        return None
    corners = columns["points"][start:end].reshape(-1, 2)
    return [*corners.min(axis=0).tolist(), *np.ptp(corners, axis=0).tolist()]


def _box_of_runs(runs: npt.NDArray[np.int64], height: int) -> list[float] | None:
    ends = np.cumsum(runs)
    is_object = (np.arange(len(runs)) % 2 == 1) & (runs > 0)
    if not is_object.any():
        return None
    first, last = (ends - runs)[is_object], ends[is_object] - 1
    (left, right), goes_on = (first[0] // height, last[-1] // height), first // height != last // height
    top = 0 if goes_on.any() else (first % height).min()
    bottom = height - 1 if goes_on.any() else (last % height).max()
    return [float(left), float(top), float(right - left + 1), float(bottom - top + 1)]


@dataclass(frozen=True)
class _Masks:
    """What is wrong with the masks.

    Attributes:
        short: the annotation's row of each polygon of fewer than three points.
        broken: what is wrong with the masks of these rows, which are left out.
    """

    short: list[int]
    broken: dict[int, str]

    def flatten(
        self,
        records: Sequence[Mapping[str, Any]],
        heights: npt.NDArray[np.int64],
        widths: npt.NDArray[np.int64],
    ) -> dict[str, Array]:
        points, runs = array("d"), array("I")
        polygon_offsets, point_offsets, run_offsets = array("q", [0]), array("q", [0]), array("q", [0])
        sizes = zip(heights.tolist(), widths.tolist(), strict=True)
        for row, (record, (height, width)) in enumerate(zip(records, sizes, strict=True)):
            mask = record.get("segmentation") if row not in self.broken else None
            try:
                if isinstance(mask, dict) and mask:
                    runs.extend(array("I", _run_lengths(mask, height, width)))
                elif mask:
                    for polygon in [array("d", polygon) for polygon in _polygons(mask)]:
                        if len(polygon) < 6 or len(polygon) % 2:
                            self.short.append(row)
                        else:
                            points.extend(polygon)
                            point_offsets.append(len(points))
            except (TypeError, KeyError, ValueError, OverflowError) as error:
                self.broken[row] = _reason(error)
            polygon_offsets.append(len(point_offsets) - 1)
            run_offsets.append(len(runs))
        return {
            "points": np.frombuffer(points, dtype=np.float64),
            "point_offsets": np.frombuffer(point_offsets, dtype=np.int64),
            "polygon_offsets": np.frombuffer(polygon_offsets, dtype=np.int64),
            "runs": np.frombuffer(runs, dtype=np.uint32),
            "run_offsets": np.frombuffer(run_offsets, dtype=np.int64),
        }


def _polygons(mask: Any) -> list[list[float]]:
    """The polygons as lists of x and y in turn."""
    if not isinstance(mask, list):
        raise TypeError
    first = mask[0]
    if isinstance(first, list) and len(first) > 2 and not isinstance(first[0], list):  # as COCO has it
        return mask
    if is_empty(mask):
        return []
    if not _is_nested(mask) or (len(mask) > 2 and all(map(_is_pair, mask))):  # one polygon, not in a list
        mask = [mask]
    if not all(isinstance(polygon, list) for polygon in mask):
        raise TypeError
    return [_flat(polygon) for polygon in mask]


def _is_nested(values: list[Any]) -> bool:
    return bool(values) and isinstance(values[0], list)


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and not isinstance(value[0], list)


def _flat(polygon: list[Any]) -> list[float]:
    """A polygon as x and y in turn, also where it is a list of pairs."""
    if _is_nested(polygon):
        if not all(map(_is_pair, polygon)):
            raise TypeError
        polygon = [coordinate for pair in polygon for coordinate in pair]
    return polygon


def decode_run_lengths(encoded: str) -> list[int]:
    """Decode COCO's compressed run lengths.

    Each number is written in base 32, least digit first, as characters from "0" on: five bits of value, bit 5
    says that more follow, bit 4 of the last is the sign. From the fourth number on, the difference from the
    number two places before is written.

    Args:
        encoded: the "counts" string of a compressed RLE.

    Returns:
        The lengths of the runs of zeros and ones in turn.

    Raises:
        ValueError: the string ends in the middle of a number, or holds a character outside of the code or a
            number beyond all images.
    """
    counts: list[int] = []
    value = shift = 0
    for byte in encoded.encode():
        digit = byte - 48
        if not 0 <= digit < 64:
            raise ValueError(f"{chr(byte)!r} is no character of a compressed RLE")
        if shift > 60:
            raise ValueError("the compressed RLE has a run beyond 64 bits")
        value |= (digit & 31) << shift
        shift += 5
        if digit & 32:
            continue
        if digit & 16:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = shift = 0
    if shift:
        raise ValueError("the compressed RLE is cut short")
    return counts


def _run_lengths(rle: Mapping[str, Any], height: int, width: int) -> list[int]:
    if list(rle["size"]) != [height, width]:
        raise ValueError(f"the RLE is of size {shown(rle['size'])}, the image of [{height}, {width}]")
    counts = rle["counts"]
    lengths = decode_run_lengths(counts) if isinstance(counts, str) else list(counts)
    if sum(lengths) != height * width:
        raise ValueError(f"the RLE covers {shown(sum(lengths))} pixels, the image has {height * width}")
    return lengths


def _far_points(columns: Mapping[str, Array]) -> dict[int, str]:
    """The rows of annotations with corners that no picture has, and what is wrong with them."""
    # Drawing a mask takes as long as its outline is.
    points = columns["points"]
    if -MAX_SIDE <= points.min(initial=0) <= points.max(initial=0) <= MAX_SIDE:  # so NaN is found, too
        return {}
    wrong = np.flatnonzero(~(np.abs(points) <= MAX_SIDE))
    polygons = np.searchsorted(columns["point_offsets"], wrong, side="right") - 1
    rows = np.unique(np.searchsorted(columns["polygon_offsets"], polygons, side="right") - 1)
    return dict.fromkeys(rows.tolist(), f"it is NaN or infinite, or reaches beyond {MAX_SIDE} pixels")


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"the RLE has no {error}"
    if isinstance(error, OverflowError):
        return "a number in it is out of range"
    if isinstance(error, ValueError):
        return str(error)
    return "it is neither a list of polygons (x, y, x, y, ...) nor an RLE"
