"""Write: the numbers of an analysis for other programs, and in short for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from lgd.analyse.comparison import Comparison
from lgd.analyse.findings import Analysis, Findings
from lgd.analyse.images import ImageCounts
from lgd.analyse.page import About
from lgd.analyse.suspects import Suspect
from lgd.data.index import AnnotationIndex
from lgd.evaluation.results import headline, replace_non_finite

_MOST_PICTURES = 100


def to_json(
    index: AnnotationIndex,
    about: About,
    analyses: Sequence[Analysis],
    counts: Sequence[ImageCounts],
    suspects: Sequence[Suspect],
    comparison: Comparison | None,
) -> dict[str, Any]:
    """All numbers of the page; null where something cannot be measured."""
    runs = []
    for analysis, each in zip(analyses, counts, strict=True):
        worst = [
            {
                **_image(index, i),
                "right": int(each.right[i]),
                "wrong": int(each.wrong[i]),
                "missed": int(each.missed[i]),
                "f1": float(each.f1[i]),
            }
            for i in each.worst(_MOST_PICTURES)
        ]
        runs.append({**asdict(analysis.findings), "worst_pictures": worst})
    said: dict[str, Any] = {
        "data": about.data,
        "images": about.images,
        "objects": about.objects,
        "doubts": list(about.doubts),
        "runs": runs,
        "suspects": [_suspect(index, each) for each in suspects],
    }
    if comparison is not None:
        gains = {"gains": comparison.gains.tolist()}
        said["comparison"] = asdict(comparison) | gains
    content: dict[str, Any] = replace_non_finite(said)
    return content


def _image(index: AnnotationIndex, i: int) -> dict[str, Any]:
    number = int(index.image_ids[i])
    return {"image_id": index.written_ids()[0].get(number, number), "file": index.file_name(i)}


def _suspect(index: AnnotationIndex, suspect: Suspect) -> dict[str, Any]:
    names = index.class_names
    return {
        "reason": suspect.reason,
        **_image(index, suspect.image),
        "box": list(suspect.box),
        "label": None if suspect.label is None else names[suspect.label],
        "found": None if suspect.found is None else names[suspect.found],
        "score": suspect.score,
    }


def to_words(findings: Findings) -> str:
    """A run in a few lines."""
    costs = sorted(findings.errors, key=lambda each: -each.cost)
    lines = [
        f"{findings.name}: {headline(findings.metrics)}",
        "  AP50 that errors cost: " + ", ".join(f"{each.name} {each.cost:.1f}" for each in costs),
        f"  scores are off by {100 * findings.calibration.mean_error:.1f} % in the mean",
    ]
    return "\n".join(lines)
