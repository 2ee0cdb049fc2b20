"""Lay out: the page `analysis.html`, which holds its plots and pictures itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from lgd.analyse.comparison import CONFIDENCE, Comparison, Difference
from lgd.analyse.drawings import COLORS, CROWD
from lgd.analyse.findings import Findings, precision_over_recall
from lgd.analyse.plots import (
    PALETTE,
    Line,
    plot_bars,
    plot_calibration,
    plot_heatmap,
    plot_intervals,
    plot_lines,
)
from lgd.analyse.style import STYLE
from lgd.data.limits import name_some
from lgd.evaluation.outcome import DEFAULT_THRESHOLD, IOU, Confusion

_MOST_LINES = len(PALETTE)
_MOST_CONFUSIONS = 12
_MOST_BESIDE = 20
"""Classes of a confusion matrix that leaves room for a table beside it."""


@dataclass(frozen=True)
class Figure:
    """Pictures side by side.

    Attributes:
        title: over them.
        panels: captions and data URIs; none where the picture could not be read.
        note: below the title.
    """

    title: str
    panels: Sequence[tuple[str, str]]
    note: str = ""


@dataclass(frozen=True)
class Gallery:
    """A heading, a sentence about it, and figures."""

    title: str
    text: str
    figures: Sequence[Figure]
    is_small: bool = False


@dataclass(frozen=True)
class About:
    """What the page is about: data set, its images and objects, and what is doubtful."""

    data: str
    images: int
    objects: int
    doubts: Sequence[str]


def write_page(
    about: About,
    findings: Findings,
    galleries: Sequence[Gallery],
    *,
    other: Findings | None = None,
    comparison: Comparison | None = None,
    changes: Sequence[Gallery] = (),
) -> str:
    """Lay out the page.

    Args:
        about: what it is about.
        findings: of the run.
        galleries: its pictures.
        other: of a second run.
        comparison: of the two.
        changes: pictures on which they differ.
    """
    title = findings.name if other is None else f"{findings.name} and {other.name}"
    sections = [_head(about, findings)]
    if comparison is not None and other is not None:
        sections.append(_comparison(comparison, findings, other))
        sections += [_gallery(each) for each in changes]
        sections.append(f'<p class="divider">From here on: {escape(findings.name)} alone.</p>')
    sections += [_errors(findings), _thresholds(findings), _curves(findings), _confusion(findings)]
    sections += [_gallery(each) for each in galleries]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}: analysis</title><style>{STYLE}</style></head>\n"
        f"<body><main>\n{chr(10).join(sections)}\n</main></body></html>\n"
    )


def _head(about: About, findings: Findings) -> str:
    metrics = findings.metrics
    tiles = [(name, _percent(metrics.get(name))) for name in ("AP", "AP50", "AP75")]
    tiles += [
        ("pictures", f"{about.images:,}"),
        ("objects", f"{about.objects:,}"),
        ("detections", f"{findings.detections:,}"),
    ]
    boxes = "".join(
        f'<div class="tile"><b>{value}</b><span>{escape(name)}</span></div>' for name, value in tiles
    )
    doubts = "".join(f'<p class="doubt">{escape(line)}</p>' for line in about.doubts)
    if not findings.detections:
        doubts += '<p class="doubt">Nothing was found in any picture.</p>'
    return (
        f"<header><h1>{escape(findings.name)}</h1><p>held against <code>{escape(about.data)}</code></p>"
        f'<div class="tiles">{boxes}</div>{doubts}</header>'
    )


def _section(title: str, text: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2><p>{text}</p>{content}</section>"


def _errors(findings: Findings) -> str:
    bars = plot_bars([(each.name, max(each.cost, 0.0), f"{each.cost:.1f}") for each in findings.errors])
    rows = [
        [
            f"{each.name}\n{each.meaning}",
            f"{each.cost:.2f}",
            f"{each.count_at_threshold:,}",
            f"{each.count:,}",
        ]
        for each in findings.errors
    ]
    hopeless = findings.hopeless if findings.detections else []
    note = (
        f'<p class="doubt">Of {escape(name_some(hopeless))} nothing is right at any score: no kind of error '
        "shows that this AP is 0.</p>"
        if hopeless
        else ""
    )
    table = _table(["kind", "AP50 it costs", "at the thresholds", "at any score"], rows)
    return _section(
        "What goes wrong",
        "Errors by kind (TIDE), and by how much AP50 would rise if those of a kind, and no others, were "
        "mended. Counts are of detections that reach the threshold of their class (below), and of all.",
        f'<div class="pair"><div>{bars}</div><div>{table}</div></div>{note}',
    )


def _thresholds(findings: Findings) -> str:
    rows = [
        [
            each.name,
            f"{each.objects:,}",
            _percent(each.ap),
            _percent(each.ap50),
            "-" if each.threshold is None else f"{each.threshold:.2f}",
            _share(each.f1),
            _share(each.precision),
            _share(each.recall),
            _share(each.calibration_error),
        ]
        for each in findings.classes
        if each.objects
    ]
    others = [each.name for each in findings.classes if not each.objects]
    note = f"<p>Without objects here: {escape(name_some(others, at_most=10))}.</p>" if others else ""
    heads = ["class", "objects", "AP", "AP50", "best threshold", "F1", "precision", "recall", "ECE"]
    return _section(
        "Classes and their best thresholds",
        f"The score from which on detections of a class are taken, so that F1 is best (IoU {IOU}); "
        f"precision, recall and F1 are those there. Where nothing is right at any score, {DEFAULT_THRESHOLD} "
        "stands in. "
        "ECE: how far scores are from the share of detections that is right.",
        _table(heads, rows) + note,
    )


def _curves(findings: Findings) -> str:
    measured = [each for each in findings.classes if each.curve is not None]
    if not measured:
        return ""
    recalls, mean = precision_over_recall(measured)
    few = len(measured) <= _MOST_LINES
    lines = [
        Line(
            each.name if few else "",
            recalls.tolist(),
            each.curve or (),
            PALETTE[number % _MOST_LINES] if few else "#c3cad6",
            2 if few else 1,
        )
        for number, each in enumerate(measured)
    ]
    if len(measured) > 1:
        lines.append(Line("mean", recalls.tolist(), mean.tolist(), "#1d2433", 2.5, dashed=few))
    calibration = findings.calibration
    bars = plot_calibration([(each.low, each.high, each.right, each.count) for each in calibration.bins])
    content = (
        f'<div class="pair"><figure><figcaption>Precision and recall, IoU {IOU}</figcaption>'
        f"{plot_lines(lines, 'recall', 'precision')}</figure>"
        f"<figure><figcaption>Calibration</figcaption>{bars}</figure></div>"
    )
    return _section(
        "Curves",
        f"Scores are off by {_share(calibration.mean_error)} in the mean (expected calibration error), at "
        f"most by {_share(calibration.largest_error)}. Bars above the dashed line: the model is better than "
        "its scores say; pale bars: fewer than 30 detections.",
        content,
    )


def _confusion(findings: Findings) -> str:
    names, table_of_counts = _without_empty(findings.confusion)
    pairs = [
        (count, row, column)
        for row, counts in enumerate(table_of_counts[:-1])
        for column, count in enumerate(counts[:-1])
        if row != column and count
    ]
    pairs.sort(reverse=True)
    rows = [
        [names[row], names[column], f"{count:,}", f"{100 * count / sum(table_of_counts[row]):.1f} %"]
        for count, row, column in pairs[:_MOST_CONFUSIONS]
    ]
    table = _table(["labelled", "found as", "times", "of its labels"], rows, words=2)
    kind = "pair" if len(names) <= _MOST_BESIDE else "stack"
    heatmap = plot_heatmap(names, table_of_counts)
    return _section(
        "Confusion",
        "What is labelled (rows) and what it is found as (columns), at the thresholds of the classes. The "
        "last column: not found; the last row: found where nothing is labelled, or twice.",
        f'<div class="{kind}"><div class="scroll">{heatmap}</div><div>{table}</div></div>'
        if rows
        else f'<div class="scroll">{heatmap}</div><p>No class is taken for another.</p>',
    )


def _without_empty(confusion: Confusion) -> tuple[list[str], list[list[int]]]:
    """Names and counts without the classes that are neither labelled nor found."""
    counts = confusion.counts
    last = len(counts) - 1
    kept = [k for k in range(last) if any(counts[k]) or any(row[k] for row in counts)] + [last]
    return [confusion.classes[k] for k in kept], [[counts[i][k] for k in kept] for i in kept]


def _comparison(comparison: Comparison, first: Findings, second: Findings) -> str:
    rows = [_difference_row(each) for each in comparison.metrics]
    heads = ["", "A", "B", "B - A", f"{100 * CONFIDENCE:.0f} % interval"]
    class_rows = [_difference_row(each) for each in comparison.classes]
    plot = plot_intervals(
        [(each.name, each.difference, each.low, each.high) for each in comparison.classes[:40]]
    )
    objects, pictures = comparison.objects, comparison.pictures
    costs = [
        [one.name, f"{one.cost:.2f}", f"{two.cost:.2f}", f"{two.cost - one.cost:+.2f}"]
        for one, two in zip(first.errors, second.errors, strict=True)
    ]
    costs.append(
        [
            "ECE",
            _share(first.calibration.mean_error),
            _share(second.calibration.mean_error),
            f"{100 * (second.calibration.mean_error - first.calibration.mean_error):+.1f} %",
        ]
    )
    return _section(
        "A against B",
        f"A is <b>{escape(comparison.first)}</b>, B is <b>{escape(comparison.second)}</b>. Intervals come "
        f"from drawing the pictures anew {comparison.rounds:,} times, the same for both; where one holds no "
        "zero, the difference is bold.",
        f'<div class="pair"><div>{_table(heads, rows)}</div><div>'
        f'{_table(["AP50 that errors cost", "A", "B", "B - A"], costs)}</div></div>'
        f'<p>Of the objects, {objects.both:,} are found by both, {objects.only_first:,} by A alone, '
        f"{objects.only_second:,} by B alone, {objects.neither:,} by neither: {_chance(objects.chance)}. "
        f"Of the pictures, B has the better F1 on {pictures.only_second:,}, A on {pictures.only_first:,}, "
        f"and on {pictures.both:,} they are equal: {_chance(pictures.chance)}. (McNemar's test, at the "
        "thresholds of each model; it takes objects of a picture for independent of one another.)</p>"
        f'<div class="pair"><div><h3>AP by class</h3>{_table(heads, class_rows)}</div>'
        f"<div><h3>B - A</h3>{plot}</div></div>",
    )  # fmt: skip


def _difference_row(each: Difference) -> list[str]:
    difference = f"{each.difference:+.2f}"
    return [
        each.name,
        f"{each.first:.2f}",
        f"{each.second:.2f}",
        f"**{difference}" if each.is_clear else difference,
        f"{each.low:+.1f} to {each.high:+.1f}",
    ]


def _chance(chance: float) -> str:
    said = "less than 0.001" if chance < 0.001 else f"{chance:.3f}"
    return f"the chance of such a split between equals is {said}"


def _gallery(gallery: Gallery) -> str:
    if not gallery.figures:
        return ""
    kind = "crops" if gallery.is_small else "figures"
    figures = "".join(map(_figure, gallery.figures))
    legend = "" if gallery.is_small else _legend()
    return _section(gallery.title, escape(gallery.text), f'{legend}<div class="{kind}">{figures}</div>')


def _figure(figure: Figure) -> str:
    panels = "".join(
        f'<div class="panel"><img loading="lazy" alt="{escape(caption)}" src="{uri}">'
        f"{f'<span>{escape(caption)}</span>' if caption else ''}</div>"
        for caption, uri in figure.panels
    )
    panels = panels or '<div class="absent">the picture cannot be read</div>'
    note = f"<small>{escape(figure.note)}</small>" if figure.note else ""
    return (
        f"<figure><figcaption>{escape(figure.title)}{note}</figcaption>"
        f'<div class="panels">{panels}</div></figure>'
    )


def _legend() -> str:
    entries = [*COLORS.values(), ("crowd", CROWD)]
    return '<div class="legend">' + "".join(
        f'<span><i style="background:rgb{color}"></i>{name}</span>' for name, color in entries
    ) + "</div>"  # fmt: skip


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """A table whose first columns are words and the others numbers.

    "**" before a number makes it bold; what follows on a second line is small.
    """

    def cell(tag: str, column: int, text: str) -> str:
        kind = "" if column < words else ' class="number"'
        first, _, more = text.partition("\n")
        shown = f"<b>{escape(first[2:])}</b>" if first.startswith("**") and kind else escape(first)
        shown += f"<small>{escape(more)}</small>" if more else ""
        return f"<{tag}{kind}>{shown}</{tag}>"

    lines = [
        "<tr>" + "".join(cell(tag, column, text) for column, text in enumerate(row)) + "</tr>"
        for tag, row in [("th", heads), *(("td", row) for row in rows)]
    ]
    return f'<div class="scroll"><table>{"".join(lines)}</table></div>'


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"
