"""Choose: which pictures the page shows, and draw them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lgd.analyse.comparison import Comparison, most_changed
from lgd.analyse.drawings import draw_found, draw_labels, draw_panels, draw_suspect, labels_about
from lgd.analyse.findings import Analysis
from lgd.analyse.images import ImageCounts
from lgd.analyse.page import Figure, Gallery
from lgd.analyse.suspects import NOT_FOUND, OTHER_CLASS, REASONS, UNLABELLED, Suspect
from lgd.data.errors import ImageError
from lgd.data.index import AnnotationIndex

MOST_WORST = 12
_MOST_SUSPECTS = 12
_MOST_CHANGES = 4

_TITLES = {
    UNLABELLED: "Likely label errors: nothing is labelled",
    OTHER_CLASS: "Likely label errors: another class",
    NOT_FOUND: "Labels that nothing fits",
}

Problems = dict[str, None]
"""What could not be drawn and why, each once."""


def draw_errors(
    index: AnnotationIndex, analysis: Analysis, counts: ImageCounts, problems: Problems
) -> Gallery:
    """The pictures with the worst errors."""
    figures = []
    for image in counts.worst(MOST_WORST):
        note = (
            f"{counts.right[image]} right, {counts.wrong[image]} wrong, {counts.missed[image]} missed; "
            f"F1 {100 * counts.f1[image]:.0f} %"
        )
        figures.append(_panels(index, image, [analysis], note, problems))
    text = (
        "What is labelled, and what was found at the thresholds. A wrong detection counts with its score, a "
        "missed object as one."
    )
    return Gallery("The pictures with the worst errors", text, figures)


def draw_suspects(
    index: AnnotationIndex, analysis: Analysis, suspects: Sequence[Suspect], problems: Problems
) -> list[Gallery]:
    """Likely label errors, each kind for itself."""
    galleries = []
    for reason, text in REASONS.items():
        figures = []
        for suspect in [each for each in suspects if each.reason == reason][:_MOST_SUSPECTS]:
            panels = []
            try:
                others = labels_about(index, suspect, analysis)
                panels = [("", draw_suspect(index, suspect, others))]
            except ImageError as error:
                problems[str(error)] = None
            note = index.file_name(suspect.image)
            figures.append(Figure(_say(suspect, index.class_names), panels, note))
        more = " Red: what was found; blue: what is labelled." if reason == UNLABELLED else ""
        galleries.append(Gallery(_TITLES[reason], text + more, figures, is_small=True))
    return galleries


def _say(suspect: Suspect, names: Sequence[str]) -> str:
    if suspect.found is None or suspect.score is None:
        return names[suspect.label or 0]
    if suspect.label is None:
        return f"{names[suspect.found]} {suspect.score:.2f}"
    return f"{names[suspect.label]}, or {names[suspect.found]} {suspect.score:.2f}?"


def draw_changes(
    index: AnnotationIndex, analyses: Sequence[Analysis], comparison: Comparison, problems: Problems
) -> list[Gallery]:
    """The pictures on which two models differ most."""
    better, worse = most_changed(comparison.gains, _MOST_CHANGES)
    titles: Mapping[str, Sequence[int]] = {
        "Where B is better": better,
        "Where B is worse": worse,
    }
    return [
        Gallery(
            title,
            "What is labelled (missed by A: red), what A found, what B found.",
            [
                _panels(index, image, analyses, f"F1 {100 * comparison.gains[image]:+.0f} %", problems)
                for image in images
            ],
        )
        for title, images in titles.items()
    ]


def _panels(
    index: AnnotationIndex, image: int, analyses: Sequence[Analysis], note: str, problems: Problems
) -> Figure:
    """An image with its labels, and with what each model found."""
    marks = [draw_labels(index, image, analyses[0]), *(draw_found(index, image, each) for each in analyses)]
    captions = ["labels", "found"] if len(analyses) == 1 else ["labels", "A", "B"]
    try:
        uris = draw_panels(index, image, marks)
    except ImageError as error:
        problems[str(error)] = None
        return Figure(index.file_name(image), [], note)
    return Figure(index.file_name(image), list(zip(captions, uris, strict=True)), note)
