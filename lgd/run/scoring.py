"""Score and write, in a process beside the training.

The process is a fresh interpreter (never forked: the trainer has threads and a GPU) that imports numpy and
what counts the matches, but no torch, and SciPy only where it matches by that. It is started once and kept; a
job goes to it through a socket as a few arrays, and one job is under way at a time.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import pickle
import signal
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

from lgd.data.index import AnnotationIndex
from lgd.evaluation.coco import COCO_CAP, Backend, Metrics
from lgd.evaluation.outcome import Outcome, find_outcome
from lgd.evaluation.predictions import Predictions
from lgd.evaluation.results import write_predictions
from lgd.evaluation.score import score
from lgd.exits import describe_end
from lgd.ranks.interruption import BLOCKED_AT_START, leave_with_parent

Scores = dict[str, dict[str, Metrics | None]]
"""Metrics of each model, as from `score`."""


class ScoringError(RuntimeError):
    """The process that scores is gone."""


@dataclass(frozen=True)
class ScoringJob:
    """The detections of an evaluation on one test set.

    Attributes:
        index: the test set.
        found: detections by model.
        with_masks: whether the models predict masks.
        backend: what counts the matches.
        paths: where to write each model's detections.
        cap: how many detections of an image there are at most.
        with_outcomes: whether to find out what pictures of the evaluation show.
    """

    index: AnnotationIndex
    found: Mapping[str, Predictions]
    with_masks: bool
    backend: Backend
    paths: Mapping[str, Path]
    cap: int = COCO_CAP
    with_outcomes: bool = False


@dataclass(frozen=True)
class Scored:
    """What came of a job.

    Attributes:
        scores: metrics of each model.
        outcomes: of each model, where they are asked for.
        refused: why the disk did not take detections, by the file that holds earlier ones, or none.
    """

    scores: Scores
    outcomes: Mapping[str, Outcome] = field(default_factory=dict)
    refused: Mapping[Path, str] = field(default_factory=dict)


def score_job(job: ScoringJob) -> Scores:
    """Score; raises ValueError where the detections do not fit the test set."""
    return score(job.index, job.found, with_masks=job.with_masks, backend=job.backend, cap=job.cap)


def find_outcomes(job: ScoringJob) -> dict[str, Outcome]:
    """What pictures show, of each model, where that is asked for and there are labels."""
    asked = job.found if job.with_outcomes else {}
    outcomes = {model: find_outcome(job.index, found) for model, found in asked.items()}
    return {model: outcome for model, outcome in outcomes.items() if outcome is not None}


def score_and_write(job: ScoringJob) -> Scored:
    """Score, and write the detections.

    Raises:
        ValueError: the detections do not fit the test set.
    """
    scores, refused = score_job(job), {}
    for model, predictions in job.found.items():
        try:
            write_predictions(job.paths[model], predictions, job.index)
        except OSError as error:
            refused[job.paths[model]] = error.strerror or type(error).__name__
    return Scored(scores, find_outcomes(job), refused)


class ScoringProcess:
    """A process that does `score_and_write` for this one, which goes on meanwhile."""

    def __init__(self) -> None:
        """Start it; it needs a moment before it can take its first job, which waits for that."""
        self._connection, theirs = multiprocessing.Pipe()
        program = f"import sys; sys.path[:] = {sys.path!r}; from lgd.run.scoring import serve; serve()"
        # Of the signals that ask this process to leave, it inherits that they are blocked.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED_AT_START)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", program, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            theirs.close()
        self._is_wanted = True

    @property
    def process_id(self) -> int:
        """Of the process, for those who watch over it."""
        return self._process.pid

    def submit(self, jobs: Sequence[ScoringJob]) -> None:
        """Hand the jobs over; `result` has to be called before the next ones are.

        Raises:
            ScoringError: the process is gone.
        """
        try:
            self._connection.send(jobs)
        except OSError as error:
            raise self._explain() from error

    def is_ready(self, seconds: float = 0.0) -> bool:
        """Whether `result` would not wait, if not now then within `seconds`."""
        return self._connection.poll(seconds)

    def find_death(self) -> ScoringError | None:
        """What it means if the process has ended without being told to."""
        return self._explain() if self._is_wanted and self._process.poll() is not None else None

    def result(self) -> list[Scored]:
        """Wait for what comes of the jobs that were handed over last.

        What the process logged meanwhile is logged here.

        Raises:
            ScoringError: the process is gone.
            Exception: what scoring raised there.
        """
        try:
            answer, records = self._connection.recv()
        except (EOFError, OSError) as error:
            raise self._explain() from error
        for record in records:
            logging.getLogger(record.name).handle(record)
        if isinstance(answer, Exception):
            raise answer
        found: list[Scored] = answer
        return found

    def close(self) -> None:
        """End the process, whatever it is doing."""
        self._is_wanted = False
        self._connection.close()
        self._process.kill()
        self._process.wait()

    def _explain(self) -> ScoringError:
        """Say how the process ended."""
        how = describe_end(self._process.wait())
        return ScoringError(f"the process that scores the detections (pid {self.process_id}) {how}")


def serve() -> None:
    """What the process does: jobs come in and scores go out, until the trainer is gone."""
    leave_with_parent(signal.SIGKILL)
    connection: Connection = Connection(int(sys.argv[1]))
    log = _Log()
    logging.getLogger("lgd").addHandler(log)
    logging.getLogger("lgd").setLevel(logging.INFO)
    with contextlib.suppress(EOFError, OSError):
        while True:
            answer = _answer(connection)
            connection.send((answer, log.take()))


def _answer(connection: Connection) -> list[Scored] | Exception:
    """Take the next jobs and do them."""
    data = connection.recv_bytes()
    try:
        jobs = pickle.loads(data)
        del data  # the arrays are copies
        return [score_and_write(job) for job in jobs]
    except BaseException as error:  # a library's own kind too
        error.add_note("in the process that scores:\n" + traceback.format_exc())
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # an exception of a library that does not survive the journey
            return ScoringError("".join(traceback.format_exception_only(error)))
        return error if isinstance(error, Exception) else ScoringError(repr(error))


class _Log(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self._records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        record.msg, record.args = record.getMessage(), None  # the arguments may not survive the journey
        record.exc_info = None
        self._records.append(record)

    def take(self) -> list[logging.LogRecord]:
        records, self._records = self._records, []
        return records
