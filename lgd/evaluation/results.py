"""Write: results of evaluations, on disk and on the terminal."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lgd.data.index import AnnotationIndex
from lgd.evaluation.predictions import Predictions
from lgd.files import replacing, write_text_atomically

Results = Mapping[str, Mapping[str, Mapping[str, Mapping[str, float | None] | None]]]
"""Data set -> "student" or "teacher" -> "bbox", "segm", ... -> metric -> percent; None where nothing can be
measured."""

_COCO_COLUMNS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
_OTHER_COLUMNS = ("AP50-07", "mMR", "JI")
_BEYOND_COLUMNS = ("AP@", "AP50@", "AR@")
_MAX_CLASSES_SHOWN = 30


def write_predictions(path: Path, predictions: Predictions, index: AnnotationIndex | None = None) -> None:
    """Write detections as one JSON list in COCO's results format; the old file stays if that fails.

    Args:
        path: the file.
        predictions: what was found on the images of `index`.
        index: the test set, whose ids are written as they stand in its annotation file; None: as numbers.
    """
    with replacing(path) as file:
        for text in predictions.to_json(*(index.written_ids() if index is not None else ())):
            file.write(text.encode())


def write_results_json(path: Path, results: Results) -> None:
    """Write the metrics as `{data set: {"student": {"bbox": {"AP": percent, ...}, ...}, "teacher": ...}}`.

    NaN and infinity, which JSON does not have, become null. The old file stays if writing fails.
    """
    write_text_atomically(path, json.dumps(replace_non_finite(results), indent=2) + "\n")


def replace_non_finite(value: Any) -> Any:
    """Return a copy of nested mappings, lists and numbers with None in place of NaN and infinity."""
    if isinstance(value, Mapping):
        return {key: replace_non_finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [replace_non_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def headline(metrics: Mapping[str, float | None]) -> str:
    """Lay out the first three metrics and AP@N, as far as measured, in a line: "AP 41.23  AP50 60.00"."""
    columns = _columns(metrics)
    shown = [*columns[:3], *(name for name in columns[3:] if name.startswith("AP@"))]
    names = [name for name in shown if metrics[name] is not None]
    return "  ".join(f"{name} {_percent(metrics[name])}" for name in names)


def results_table(results: Results) -> str:
    """Lay out the metrics as text.

    A row per data set, model and kind of metrics ("bbox", "segm", ...) in a table for each set of columns,
    then AP per class where classes are few.
    """
    tables: dict[tuple[str, ...], list[list[str]]] = {}
    for dataset, models in results.items():
        for model, kinds in models.items():
            for kind, metrics in kinds.items():
                columns = _columns(metrics)
                rows = tables.setdefault(columns, [["data set", "model", "metrics", *columns]])
                rows.append([dataset, model, kind, *_percents(metrics, columns)])
    texts = [_align(rows, num_text_columns=3) for rows in tables.values()]
    for dataset, models in results.items():
        texts += _class_tables(dataset, models)
    return "\n\n".join(texts)


def _columns(metrics: Mapping[str, float | None] | None) -> tuple[str, ...]:
    """The six of COCO that everyone reports, with VOC's and CrowdHuman's own after AP50.

    Those of more than COCO's 100 detections come last. Where the metrics are others, it is all that
    are not of one class.
    """
    if metrics is None:
        return _COCO_COLUMNS
    if set(_COCO_COLUMNS) <= metrics.keys():
        others = (name for name in _OTHER_COLUMNS if name in metrics)
        beyond = (name for name in metrics if name.startswith(_BEYOND_COLUMNS))
        return (*_COCO_COLUMNS[:2], *others, *_COCO_COLUMNS[2:], *beyond)
    return tuple(name for name in metrics if not name.startswith("AP-"))


def _class_tables(
    dataset: str, models: Mapping[str, Mapping[str, Mapping[str, float | None] | None]]
) -> Iterator[str]:
    """Yield the table of AP per class of one data set, or nothing where it would be empty or too long."""
    columns = {
        f"{model} {kind}": metrics
        for model, kinds in models.items()
        for kind, metrics in kinds.items()
        if metrics and any(name.startswith("AP-") for name in metrics)
    }
    names = dict.fromkeys(name for metrics in columns.values() for name in metrics if name.startswith("AP-"))
    if 0 < len(names) <= _MAX_CLASSES_SHOWN:
        rows = [
            [name.removeprefix("AP-"), *(_percent(metrics.get(name)) for metrics in columns.values())]
            for name in names
        ]
        yield _align([[f"AP per class, {dataset}", *columns], *rows], num_text_columns=1)


def _percents(metrics: Mapping[str, float | None] | None, columns: Sequence[str]) -> list[str]:
    return [_percent((metrics or {}).get(column)) for column in columns]


def _percent(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.2f}"


def _align(rows: Sequence[Sequence[str]], num_text_columns: int) -> str:
    """Pad the cells into columns, the first `num_text_columns` to the left and the rest to the right."""
    widths = [max(len(row[c]) for row in rows) for c in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if c < num_text_columns else cell.rjust(width)
            for c, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join(lines)
