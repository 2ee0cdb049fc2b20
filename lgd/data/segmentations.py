"""The masks of COCO-style annotations as flat columns: polygons and run-length encodings.

Legend: A annotations, P polygons of all of them.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lgd.data.columns import Array
from lgd.data.errors import DataError
from lgd.data.limits import MAX_SIDE, name_some, shown
from lgd.data.remarks import Remark


def segmentation_columns(
    records: Sequence[Mapping[str, Any]],
    heights: npt.NDArray[np.int64],
    widths: npt.NDArray[np.int64],
    path: Path,
) -> tuple[dict[str, Array], list[Remark]]:
    """Flatten the masks of A annotations.

    Polygons of fewer than three points are dropped and counted; the annotation keeps its box.

    Args:
        records: the annotations; "segmentation" is a list of polygons, an RLE, or absent.
        heights: (A,) of their images, pixels.
        widths: (A,) of their images, pixels.
        path: the annotation file, for messages.

    Returns:
        polygon_offsets, point_offsets, points, run_offsets, runs (see `lgd.data.index`), and the remarks.

    Raises:
        DataError: a mask is neither polygons nor RLE, is not finite, is far outside its image, or is not of
            its image's size.
    """
    points, runs = array("d"), array("I")
    polygon_offsets, point_offsets, run_offsets = array("q", [0]), array("q", [0]), array("q", [0])
    dropped: list[int] = []
    for record, height, width in zip(records, heights.tolist(), widths.tolist(), strict=True):
        mask = record.get("segmentation") or []
        try:
            if isinstance(mask, dict):
                runs.extend(_run_lengths(mask, height, width))
            else:
                _add_polygons(mask, points, point_offsets, dropped, record["id"])
        except (TypeError, KeyError, ValueError, OverflowError) as error:
            raise DataError(f"{path}: segmentation of annotation {record['id']}: {_reason(error)}") from error
        polygon_offsets.append(len(point_offsets) - 1)
        run_offsets.append(len(runs))
    columns: dict[str, Array] = {
        "points": np.frombuffer(points, dtype=np.float64),
        "point_offsets": np.frombuffer(point_offsets, dtype=np.int64),
        "polygon_offsets": np.frombuffer(polygon_offsets, dtype=np.int64),
        "runs": np.frombuffer(runs, dtype=np.uint32),
        "run_offsets": np.frombuffer(run_offsets, dtype=np.int64),
    }
    _refuse_far_points(columns, records, path)
    named = name_some(dropped)
    text = f"{len(dropped)} polygons of fewer than three points were dropped (annotations {named})"
    return columns, [Remark("polygons_too_short", len(dropped), text)] if dropped else []


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


def _add_polygons(
    polygons: Any, points: array[float], point_offsets: array[int], dropped: list[int], annotation_id: int
) -> None:
    if not isinstance(polygons, list) or not all(isinstance(polygon, list) for polygon in polygons):
        raise TypeError
    for polygon in polygons:
        if len(polygon) < 6 or len(polygon) % 2:
            dropped.append(annotation_id)
        else:
            points.extend(polygon)
            point_offsets.append(len(points))


def _refuse_far_points(
    columns: Mapping[str, Array], records: Sequence[Mapping[str, Any]], path: Path
) -> None:
    # Drawing a mask takes as long as its outline is.
    points = columns["points"]
    if not -MAX_SIDE <= points.min(initial=0) <= points.max(initial=0) <= MAX_SIDE:  # so NaN is found, too
        wrong = np.flatnonzero(~(np.abs(points) <= MAX_SIDE))
        polygon = np.searchsorted(columns["point_offsets"], wrong[0], side="right") - 1
        annotation = np.searchsorted(columns["polygon_offsets"], polygon, side="right") - 1
        raise DataError(
            f"{path}: segmentation of annotation {records[annotation]['id']} is NaN or infinite, or reaches "
            f"beyond {MAX_SIDE} pixels"
        )


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"the RLE has no {error}"
    if isinstance(error, OverflowError):
        return "a number in it is out of range"
    if isinstance(error, ValueError):
        return str(error)
    return "it is neither a list of polygons (x, y, x, y, ...) nor an RLE"
