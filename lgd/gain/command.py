"""`lgd gain`: train plain and distilled on many seeds or folds, and write down what comes out."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lgd import __version__, exits
from lgd.bench.machine import machine_facts
from lgd.config.load import load_config
from lgd.config.values import ConfigError
from lgd.data.catalog import open_dataset
from lgd.events import add_json_option, json_file, sends_events, wants_events, write_event
from lgd.files import prepare_file, typed_path, write_text_atomically
from lgd.gain.folds import write_folds
from lgd.gain.numbers import Row, equal_time, make_rows
from lgd.gain.page import About, to_json, to_table, write_page
from lgd.gain.study import (
    METHODS,
    OPTIONS,
    PLAIN,
    TEACHER,
    Run,
    Study,
    name_of_data,
    read_methods,
    refuse_settings,
    settings_of,
    test_line,
)
from lgd.gain.training import TrainingError, train
from lgd.notices import above_bars, lines_on_stderr, long_work
from lgd.ranks.cores import count_cores
from lgd.run.complaints import answer, complain
from lgd.run.log import log_as_json
from lgd.words import counted

PAGE = "gain.md"


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="lgd gain",
        description="Train a detector plain and with distillation, on several seeds or folds, and write a "
        "page of what it gains. Finished runs are not repeated, broken ones go on: give the same line again.",
        epilog=f"Exit codes: {exits.DONE} done, {exits.FAULT} a training failed, {exits.USER_ERROR} what you "
        f"can mend, {exits.RUN_AGAIN} asked to leave (give it again), {exits.CTRL_C} Ctrl-C.",
    )
    parser.add_argument(
        "--data", nargs="+", required=True, metavar="LINE", help="to train on: KIND:FOLDER:SPLIT"
    )
    parser.add_argument("--test-split", default="val", metavar="NAME", help="to validate on (val)")
    parser.add_argument(
        "--recipes", nargs="+", default=["examples/bccd_small"], metavar="RECIPE",
        help="names or files (examples/bccd_small)",
    )  # fmt: skip
    parser.add_argument(
        "--methods", nargs="+", default=[PLAIN, "lgd"], metavar="NAME",
        help=f"of {', '.join(METHODS)}; or your own, \"weak=lgd MODEL.DISTILLATOR.LAMBDA 0.3\" (plain lgd)",
    )  # fmt: skip
    parser.add_argument("--steps", nargs="+", type=_whole, default=[1500], metavar="N", help="lengths (1500)")
    parser.add_argument("--seeds", type=_whole, default=3, metavar="N", help="trainings of each (3)")
    parser.add_argument(
        "--folds", type=int, default=0, metavar="K", help="divide both splits so that each picture validates"
    )
    parser.add_argument(
        "--equal-time", metavar="METHOD", help="also the plain detector for as long as this one takes"
    )
    parser.add_argument("--evaluations", type=_whole, default=5, metavar="N", help="of a training (5)")
    parser.add_argument("--jobs", type=_whole, default=1, metavar="N", help="trainings at a time (1)")
    parser.add_argument("--out", type=typed_path, default=Path("outputs/gain"), metavar="DIR")
    parser.add_argument(
        "--page", type=typed_path, metavar="FILE", help=f"the page; by default {PAGE} in --out"
    )
    add_json_option(parser)
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="settings over all the others")
    arguments = parser.parse_intermixed_args(argv)
    if arguments.folds < 0 or arguments.folds == 1:
        parser.error("--folds must be at least 2")
    if arguments.equal_time == PLAIN:
        parser.error("--equal-time names a method other than plain")
    return arguments


def _whole(text: str) -> int:
    if not re.fullmatch(r"0*[1-9][0-9]{0,8}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code, one of `lgd.exits`."""
    words = sys.argv[1:] if argv is None else list(argv)
    arguments = parse_arguments(words)
    if wants_events(arguments):
        log_as_json()
    return answer(partial(_gain, arguments, words), arguments.out)


def _gain(arguments: argparse.Namespace, words: Sequence[str]) -> int:
    page = arguments.page or arguments.out / PAGE
    study = _read_study(arguments)
    session = Session(study, _lines_of(study), arguments.jobs)
    facts, command = _facts(), f"lgd gain {shlex.join(words)}"
    file = json_file(arguments)
    for each in filter(None, (page, file)):
        prepare_file(each)
    content: dict[str, Any] = {}

    def write() -> list[Row]:
        rows, about = (
            make_rows(session.results, session.compared),
            About(command, facts, [*map(str, session.failed)]),
        )
        write_page(page, study, rows, about)
        content.update(to_json(study, session.results, rows, about))
        if file is not None:
            write_text_atomically(file, json.dumps(content, indent=1) + "\n")
        return rows

    with nullcontext() if sends_events() else lines_on_stderr():
        try:
            session.train_all(arguments.equal_time, write)
        except TrainingError as error:  # one that was asked to leave, and others will be
            complain(f"{error}; the same command goes on with it")
            return exits.RUN_AGAIN
    rows = write()
    words_to = sys.stdout
    if sends_events():
        write_event("result", page=str(page), **content)
        words_to = sys.stderr
    words_to.write(f"{to_table(rows)}\n\n{page}\n")
    if not session.failed:
        return exits.DONE
    complain(f"{counted(len(session.failed), 'training')} failed, the last: {session.failed[-1]}")
    mendable = all(error.code == exits.USER_ERROR for error in session.failed)
    return exits.USER_ERROR if mendable else exits.FAULT


def _read_study(arguments: argparse.Namespace) -> Study:
    """The study that was asked for, whose settings have been tried.

    Raises:
        ConfigError: a recipe, a method or a setting that there is not.
    """
    names = [name_of_data(line) for line in arguments.data]
    for kind, each in (("--data", names), ("--recipes", [Path(name).stem for name in arguments.recipes])):
        if len({*each}) < len(each):
            raise ConfigError(f"{kind}: two of them are called alike ({', '.join(each)}); rename one")
    refuse_settings(arguments.opts, OPTIONS)
    methods = read_methods(arguments.methods)
    if arguments.equal_time and {PLAIN, arguments.equal_time} - {*methods}:
        raise ConfigError(f"--equal-time needs plain and {arguments.equal_time} among --methods")
    study = Study(
        data=tuple(arguments.data),
        recipes=tuple(arguments.recipes),
        methods=methods,
        steps=tuple(arguments.steps),
        seeds=tuple(range(1, arguments.seeds + 1)),
        folds=arguments.folds,
        test_split=arguments.test_split,
        evaluations=arguments.evaluations,
        options=tuple(arguments.opts),
        out=arguments.out,
    )
    for run in {(run.recipe, run.method): run for run in study.runs()}.values():
        if run.method != TEACHER:
            load_config(run.recipe, settings_of(run, study, [run.data], [run.data]))
    return study


def _lines_of(study: Study) -> Callable[[Run], tuple[list[str], list[str]]]:
    """For a run the lines to train and to validate on; writes the folds, if there are any.

    Raises:
        DataError: a set that cannot be opened or divided.
    """
    root = Path(load_config(study.recipes[0], study.options).datasets.root)
    if not study.folds:
        tests = {line: test_line(line, study.test_split) for line in study.data}
        for line in (*tests, *tests.values()):
            open_dataset(line, root)  # better now than in every training
        return lambda run: ([run.data], [tests[run.data]])
    folds = {
        line: write_folds(
            [line, test_line(line, study.test_split)],
            root,
            study.folds,
            study.out / name_of_data(line) / "folds",
        )
        for line in study.data
    }

    def find(run: Run) -> tuple[list[str], list[str]]:
        assert run.fold is not None
        train_on, validate_on = folds[run.data][run.fold]
        return [train_on], [validate_on]

    return find


@dataclass
class Session:
    """Trains the runs of a study.

    Attributes:
        study: all of it.
        lines: for a run the lines to train and to validate on.
        jobs: trainings at a time.
        results: of the runs that are done, in the order of the study.
        compared: of the runs that are as long in time, the steps of those they are compared with.
        failed: why, for each that did not come to its end.
        asked: by whichever was asked to leave, so that no other is begun.
    """

    study: Study
    lines: Callable[[Run], tuple[list[str], list[str]]]
    jobs: int
    results: dict[Run, dict[str, Any]] = field(default_factory=dict)
    compared: dict[Run, int] = field(default_factory=dict)
    failed: list[TrainingError] = field(default_factory=list)
    asked: TrainingError | None = None

    def train_all(self, timed: str | None, after_each: Callable[[], object]) -> None:
        """Train every run, pretrained teachers first, and at last the plain ones for as long as `timed`."""
        runs = self.study.runs()
        self._train([run for run in runs if run.method == TEACHER], after_each)
        self._train([run for run in runs if run.method != TEACHER], after_each)
        longer = {}
        for run in runs:
            other = equal_time(run, self.results) if run.method == timed else None
            if other is not None:
                longer[other] = run.steps
        self.compared.update(longer)
        self._train(list(longer), after_each)

    def _train(self, runs: Sequence[Run], after_each: Callable[[], object]) -> None:
        if not runs:
            return
        threads = max(1, count_cores() // self.jobs)
        with (
            long_work("training", len(runs), "trainings") as advance,
            ThreadPoolExecutor(self.jobs) as pool,
        ):
            jobs = {pool.submit(self._train_once, run, threads): run for run in runs}
            try:
                for job in as_completed(jobs):
                    self._note(jobs[job], job.result)
                    after_each()
                    advance(1)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        done = {run: self.results.pop(run) for run in runs if run in self.results}
        self.results.update(done)

    def _train_once(self, run: Run, threads: int) -> dict[str, Any]:
        folder = run.folder(self.study.out)
        options = settings_of(run, self.study, *self.lines(run))
        if self.asked is not None:
            raise self.asked
        try:
            return train(run, options, folder, threads)
        except TrainingError as error:
            if error.code == exits.RUN_AGAIN:
                self.asked = error
            raise

    def _note(self, run: Run, result: Callable[[], dict[str, Any]]) -> None:
        try:
            found = self.results[run] = result()
        except TrainingError as error:
            if error is self.asked:
                raise
            self.failed.append(error)
            _say(str(error))
            if sends_events():
                write_event("failed", run=run.name(), message=str(error))
            return
        if sends_events():
            write_event(
                "trained", run=run.name(), AP=found["AP"], AP50=found["AP50"], seconds=found["seconds"]
            )
        _say(f"{run.name()}: AP {found['AP']:.2f}, AP50 {found['AP50']:.2f}, {found['seconds']:.3g} s a step")


def _say(line: str) -> None:
    """A line at once, also into a pipe."""
    with above_bars(sys.stderr):
        sys.stderr.write(line + "\n")


def _facts() -> dict[str, str]:
    """Machine, versions and the commit of this code, where it is a clone."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    folder = Path(__file__).parent
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty=+", "--exclude=*"],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    commit = {"commit": described.stdout.strip()} if described.returncode == 0 else {}
    return {"lgd": __version__, **commit, **machine_facts(device)}
