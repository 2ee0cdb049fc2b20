"""`lgd analyse RUN [RUN_B]`: what a trained model gets wrong, as a page and as numbers."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from lgd import exits
from lgd.analyse.comparison import Comparison, compare
from lgd.analyse.findings import Analysis, analyse
from lgd.analyse.galleries import Problems, draw_changes, draw_errors, draw_suspects
from lgd.analyse.images import ImageCounts, count_by_image
from lgd.analyse.page import About, write_page
from lgd.analyse.report import to_json, to_words
from lgd.analyse.runs import SavedPredictions, Source, detections_of, find_run, name_runs, open_set, take
from lgd.analyse.suspects import Suspect, find_suspects
from lgd.data.errors import DataError
from lgd.data.index import AnnotationIndex
from lgd.evaluation.ground_truth import ground_truth_of
from lgd.evaluation.predictions import Predictions
from lgd.evaluation.results import write_predictions
from lgd.files import typed_path, write_text_atomically
from lgd.notices import long_work
from lgd.run.complaints import answer
from lgd.run.log import start_logging
from lgd.words import counted

logger = logging.getLogger("lgd.analyse")

PAGE = "analysis.html"
_PREDICTIONS = ("predictions.json", "predictions_b.json")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="lgd analyse",
        description="Say what a trained model gets wrong: errors by kind, confusion, calibration, "
        f"thresholds, the worst pictures, likely label errors. Writes {PAGE}; with a second run, compares "
        "the two.",
        epilog=f"Exit codes: {exits.DONE} done, {exits.USER_ERROR} what you can mend, {exits.CTRL_C} Ctrl-C.",
    )
    what = "a run's folder, a file of weights, or predictions as JSON"
    parser.add_argument("run", metavar="RUN", help=what)
    parser.add_argument("other", nargs="?", metavar="RUN_B", help="another one, to be compared with it")
    parser.add_argument(
        "--data", metavar="DATASET", help="as lgd data takes it; by default the run's first test set"
    )
    parser.add_argument(
        "--root", type=typed_path, metavar="DIR", help="as DATASETS.ROOT; by default the run's"
    )
    parser.add_argument(
        "--out", type=typed_path, metavar="DIR", help="by default analysis in the run's folder, or here"
    )
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda or cuda:1; CUDA where there is one")
    parser.add_argument(
        "--batch", type=int, metavar="N", help="pictures at a time; by default as in the run's evaluations"
    )
    parser.add_argument(
        "--bootstrap", type=int, default=1000, metavar="N", help="how often pictures are drawn anew (1000)"
    )
    parser.add_argument("--json", action="store_true", help="the numbers as a JSON object on stdout")
    arguments = parser.parse_args(argv)
    if arguments.batch is not None and arguments.batch < 1:
        parser.error("--batch must be at least 1")
    if not 1 <= arguments.bootstrap <= 100_000:
        parser.error("--bootstrap must be from 1 to 100000")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code, one of `lgd.exits`."""
    arguments = parse_arguments(argv)
    start_logging(rank=0, stream=sys.stderr)
    # A ValueError: ids that the data does not have.
    return answer(partial(_analyse, arguments), arguments.out, also=(ValueError,))


def _analyse(arguments: argparse.Namespace) -> int:
    words = [arguments.run, *([arguments.other] if arguments.other else [])]
    out = arguments.out or _default_folder(arguments.run)
    sources = [take(word, arguments.device) for word in words]
    index = open_set(words[0], sources[0], arguments.data, arguments.root)
    truth = ground_truth_of(index, with_masks=False)
    if truth is None or truth.crowd.all():
        raise DataError(f"{index.name} has no labels to hold detections against")
    names = name_runs(words)
    doubts: list[str] = []
    analyses: list[Analysis] = []
    for name, source, file in zip(names, sources, _PREDICTIONS, strict=False):
        found = _detect(source, index, arguments.batch, doubts)
        if not isinstance(source, SavedPredictions):
            write_predictions(out / file, found, index)
        analyses.append(analyse(index, truth, found, name))
    counts = [count_by_image(each, len(index)) for each in analyses]
    comparison = None
    if len(analyses) == 2:
        with long_work("comparing", len(index.class_names) + 1, "classes") as advance:
            comparison = compare(truth, analyses, counts, rounds=arguments.bootstrap, advance=advance)
    about = About(index.name, len(index), int((~truth.crowd).sum()), doubts)
    suspects = find_suspects(analyses[0])
    _write(out / PAGE, index, about, analyses, counts, suspects, comparison)
    if arguments.json:
        content = to_json(index, about, analyses, counts, suspects, comparison)
        sys.stdout.write(json.dumps(content) + "\n")
    else:
        sys.stdout.write("\n".join(to_words(each.findings) for each in analyses) + "\n")
    return exits.DONE


def _detect(source: Source, index: AnnotationIndex, batch: int | None, doubts: list[str]) -> Predictions:
    found, more = detections_of(source, index, batch=batch)
    doubts += more
    for line in more:
        logger.warning("%s", line)
    return found


def _write(
    path: Path,
    index: AnnotationIndex,
    about: About,
    analyses: Sequence[Analysis],
    counts: Sequence[ImageCounts],
    suspects: Sequence[Suspect],
    comparison: Comparison | None,
) -> None:
    """Draw the pictures, and write the page."""
    problems: Problems = {}
    galleries = [draw_errors(index, analyses[0], counts[0], problems)]
    galleries += draw_suspects(index, analyses[0], suspects, problems)
    changes = [] if comparison is None else draw_changes(index, analyses, comparison, problems)
    if problems:
        line = f"{counted(len(problems), 'picture')} could not be drawn: {next(iter(problems))}"
        logger.warning("%s", line)
        about = replace(about, doubts=[*about.doubts, line])
    other = None if comparison is None else analyses[1].findings
    page = write_page(
        about, analyses[0].findings, galleries, other=other, comparison=comparison, changes=changes
    )
    write_text_atomically(path, page)
    logger.info("%s: %.1f MB", path, len(page) / 1e6)


def _default_folder(word: str) -> Path:
    run = find_run(word)
    return Path("analysis") if run is None else run / "analysis"
