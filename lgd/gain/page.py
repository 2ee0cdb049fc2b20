"""The page of a study: what was trained, where, by which lines, and what came out of it, whatever it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lgd.files import write_text_atomically
from lgd.gain.curves import draw_curves
from lgd.gain.numbers import Gain, Results, Row
from lgd.gain.study import EQUAL_TIME, Study, name_of_data
from lgd.words import counted

_COLUMNS = ("method", "steps", "runs", "AP (sd)", "over plain, paired", "AP50", "teacher AP", "s/step", "MiB")
_RIGHT = "|---|---:|---:|---:|---:|---:|---:|---:|---:|"


@dataclass(frozen=True)
class About:
    """Where a study was made.

    Attributes:
        command: the line that repeats it.
        facts: machine, versions, commit, by name.
        failed: a line for each run that did not come to its end.
    """

    command: str
    facts: Mapping[str, str]
    failed: Sequence[str]


def write_page(path: Path, study: Study, rows: Sequence[Row], about: About) -> None:
    """Write the page and, beside it, a picture of the curves of each data set, recipe and length."""
    lines = [
        "# What distillation gains",
        "",
        "Written by `lgd gain`: what came out, a loss too. AP is the student's on pictures that it was not "
        "trained on, in the mean over the runs, with their sample deviation. Differences are between runs "
        "with the same data, seed and fold; in brackets the middle 95 % of the means of as many differences "
        "drawn with replacement, which is too narrow for few pairs. An interval that holds 0 shows no "
        "difference.",
        "",
        *(f"- {name}: {value}" for name, value in about.facts.items()),
        *_explain(study, rows),
        "",
        "```",
        about.command,
        "```",
    ]
    for (data, recipe), group in _grouped(rows).items():
        lines += ["", f"## {name_of_data(data)}, {Path(recipe).stem}", "", *_table(group)]
        lines += _pictures(path, group)
    if about.failed:
        lines += ["", "## Not done", "", *(f"- {line}" for line in about.failed)]
    write_text_atomically(path, "\n".join(lines) + "\n")


def to_json(study: Study, results: Results, rows: Sequence[Row], about: About) -> dict[str, Any]:
    """The same for programs."""
    return {
        "command": about.command,
        "about": dict(about.facts),
        "methods": dict(study.methods),
        "options": list(study.options),
        "runs": [{**asdict(run), **result} for run, result in results.items()],
        "rows": [asdict(row) for row in rows],
        "failed": list(about.failed),
    }


def to_table(rows: Sequence[Row]) -> str:
    """All rows for a terminal, in Markdown."""
    tables = [
        "\n".join([f"{name_of_data(data)}, {Path(recipe).stem}", *_table(group)])
        for (data, recipe), group in _grouped(rows).items()
    ]
    return "\n\n".join(tables)


def _grouped(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.data, row.recipe), []).append(row)
    return groups


def _table(rows: Sequence[Row]) -> list[str]:
    masks = any("mask AP" in row.others for row in rows)
    columns = [*_COLUMNS, *(["mask AP"] if masks else [])]
    lines = [f"| {' | '.join(columns)} |", _RIGHT + ("---:|" if masks else "")]
    for row in rows:
        cells = [
            row.method,
            str(row.steps),
            str(row.runs),
            f"{row.ap:.2f}" + ("" if row.sd is None else f" ({row.sd:.2f})"),
            "" if row.gain is None else _say_gain(row.gain),
            f"{row.ap50:.2f}",
            _optional(row.others.get("teacher AP")),
            f"{row.seconds:.3g}",
            f"{row.memory:.0f}",
            *([_optional(row.others.get("mask AP"))] if masks else []),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _optional(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _say_gain(gain: Gain) -> str:
    if gain.low is None or gain.high is None:
        return f"{gain.mean:+.2f} (one pair)"
    return f"{gain.mean:+.2f} [{gain.low:+.2f}, {gain.high:+.2f}]"


def _explain(study: Study, rows: Sequence[Row]) -> Iterator[str]:
    """A line for each method that is more than its name."""
    for name, settings in study.methods.items():
        if settings:
            yield f"- {name}: `{settings}`"
    if any(study.imitates(name) for name in study.methods):
        yield "- the pretrained teacher: the plain detector, trained twice as long"
    if any(row.method == EQUAL_TIME for row in rows):
        yield f"- {EQUAL_TIME}: the plain detector with as many steps as take the other's time"


def _pictures(path: Path, rows: Sequence[Row]) -> list[str]:
    """Draw the curves of each length; returns the lines that show them."""
    lines = []
    for steps in dict.fromkeys(row.steps for row in rows if row.method != EQUAL_TIME):
        curves = {row.method: row.curve for row in rows if row.steps == steps and len(row.curve) > 1}
        if not curves:
            continue
        title = f"{name_of_data(rows[0].data)}, {Path(rows[0].recipe).stem}, {counted(steps, 'step')}"
        name = f"{path.stem}-{title.replace(', ', '-').replace(' ', '-')}.svg"
        write_text_atomically(path.with_name(name), draw_curves(curves, title))
        lines += ["", f"![{title}]({name})"]
    return lines
