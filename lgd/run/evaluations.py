"""Detect, score, write: the evaluations of a run, scored at once or beside the training."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any

from torch import Tensor

from lgd.data.errors import DataError
from lgd.engine.averaging import weights_by_model
from lgd.engine.checkpoint import amend_checkpoint, attempt, write_file
from lgd.engine.loop import TrainState
from lgd.engine.metrics import Losses, MetricsWriter
from lgd.engine.progress import NonFiniteError
from lgd.evaluation.coco import Backend
from lgd.evaluation.results import Results, headline, write_predictions, write_results_json
from lgd.evaluation.score import is_better
from lgd.events import event
from lgd.inference.detect import Inference
from lgd.inference.figures import draw_outcomes
from lgd.inference.test_sets import TestSet, draw_examples
from lgd.ranks import process_group
from lgd.ranks.interruption import Interrupted
from lgd.run.best import file_content, find_best, is_over, wait_on
from lgd.run.context import RunContext
from lgd.run.scoring import Scored, ScoringJob, ScoringProcess, find_outcomes, score_job

logger = logging.getLogger(__name__)

_SECONDS = 3.0
"""How long a run that ends by a fault waits for a score."""


@dataclass(frozen=True)
class Measures:
    """What is measured, and what counts.

    Attributes:
        backend: what counts the matches.
        cap: how many detections of an image there are at most.
        best_metric: by which the best model is chosen, of the student on the first test set: "AP" of boxes,
            "segm/AP" of masks.
        patience: evaluations without a better one after which the training ends; 0 for never.
        min_delta: by how much it must be better to count.
        with_figures: whether pictures of the numbers are drawn.
    """

    backend: Backend
    cap: int
    best_metric: str
    patience: int = 0
    min_delta: float = 0.0
    with_figures: bool = False


class Evaluator:
    """Evaluates the model as it is on every test set.

    Args:
        detect: detects on every test set; see `detect_on_test_sets`.
        context: where the ranks meet before, and where predictions and results go.
        measures: what is measured.
        image_format: order of the channels of the images to draw.
    """

    def __init__(
        self,
        detect: Callable[[], Iterator[tuple[TestSet, Inference]]],
        context: RunContext,
        *,
        measures: Measures,
        image_format: str,
    ) -> None:
        self.measures = measures
        self.output = context.output
        self.refused = context.refused
        self._detect = detect
        self.watch = context.watch
        self._channel = context.channel
        self._image_format = image_format

    def evaluate(self, step: int, metrics: MetricsWriter | None) -> Results | None:
        """Detect, score and write; what was found on rank 0, None on the others.

        Args:
            step: steps done.
            metrics: where numbers and pictures of a training go.

        Raises:
            Interrupted: on every rank, because one of them was asked to leave.
        """
        results = {}
        for name, job in self.detect(step, metrics):
            scored = Scored(score_job(job), find_outcomes(job))
            results[name] = scored.scores
            for model, predictions in job.found.items():
                path = job.paths[model]
                self.refused.attempt(path, partial(write_predictions, path, predictions, job.index))
            self._report(step, name, scored, metrics)
        return self._write(results)

    def detect(self, step: int, metrics: MetricsWriter | None) -> Iterator[tuple[str, ScoringJob]]:
        """Detect on every test set, draw, and yield on rank 0 the set's name and what there is to score.

        Raises:
            Interrupted: on every rank, because one of them was asked to leave.
        """
        self.watch.again("waiting for the other ranks' evaluation", may_take_long=True)
        self._channel.meet(f"the evaluation after step {step}")
        for test_set, inference in self._detect():
            self.watch.again("scoring", may_take_long=True)
            self._report_losses(step, test_set.name, inference.losses, metrics)
            if metrics is not None:
                examples = draw_examples(test_set, inference, self._image_format)
                metrics.log_images(test_set.name, step, examples)
            paths = {model: self.output.predictions(test_set.name, model) for model in inference.found}
            found, backend, cap = inference.found, self.measures.backend, self.measures.cap
            shows = self.measures.with_figures and metrics is not None
            job = ScoringJob(test_set.index, found, inference.with_masks, backend, paths, cap, shows)
            yield test_set.name, job

    def report(self, step: int, found: Mapping[str, Scored], metrics: MetricsWriter) -> Results | None:
        """Write what came of the evaluation after `step`, by test set."""
        for name, each in found.items():
            for path, reason in each.refused.items():
                self.refused.note(path, reason)
            self._report(step, name, each, metrics)
        return self._write({name: each.scores for name, each in found.items()})

    def _report_losses(self, step: int, name: str, losses: Losses, metrics: MetricsWriter | None) -> None:
        if metrics is not None and losses:
            metrics.log_losses(step, name, losses)
        for model, values in losses.items():
            total, *parts = (f"{loss} {value:.4f}" for loss, value in values.items())
            line = f"{name} at step {step}, {model}: {total} ({'  '.join(parts)})"
            facts = event("losses", iteration=step, data=name, model=model, losses=values)
            logger.info("%s", line, extra=facts)

    def _report(self, step: int, name: str, scored: Scored, metrics: MetricsWriter | None) -> None:
        if metrics is not None:
            metrics.log_evaluation(step, name, scored.scores)
            if scored.outcomes:
                metrics.log_figures(name, step, draw_outcomes(scored.outcomes))
        for model, kinds in scored.scores.items():
            for kind, numbers in kinds.items():
                if numbers is not None:
                    line = f"{name} at step {step}, {model} {kind}: {headline(numbers)}"
                    facts = {"iteration": step, "data": name, "model": model, "kind": kind}
                    logger.info("%s", line, extra=event("evaluation", **facts, metrics=numbers))

    def _write(self, results: Results) -> Results | None:
        if not process_group.is_main():
            return None
        self.refused.attempt(self.output.results, partial(write_results_json, self.output.results, results))
        return results


@dataclass
class _Pending:
    """An evaluation that is being scored.

    Attributes:
        step: steps done.
        names: of the test sets.
        weights: the model's, in the host's memory, as from `weights_by_model`.
        is_saved: a checkpoint of this step says that the evaluation is owed.
    """

    step: int
    names: list[str]
    weights: Mapping[str, Mapping[str, Tensor]]
    is_saved: bool = False


class TrainingEvaluations:
    """The evaluations of a training; all but the last are scored in another process while it goes on.

    With patience, the training may end by any of them: then each is scored at once.

    What is written does not depend on when a score arrives. The rows of metrics.jsonl that come after the
    evaluation's wait for it. The weights are kept until it shows whether they are the best. A checkpoint of
    the evaluated step says that the evaluation is owed, until the score has come and is written into its
    seal; one of a later step waits for the score. So a run that is killed before repeats the evaluation.

    A context around the training: at its end the score that is still missing is waited for.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        state: TrainState,
        metrics: MetricsWriter,
        *,
        last_step: int,
        about: Mapping[str, Any],
    ) -> None:
        """Watch over a training.

        Args:
            evaluator: of its model.
            state: of the training; `best` is changed.
            metrics: where the numbers go.
            last_step: the evaluation after it is scored at once.
            about: goes into the file of the best model.
        """
        self.results: Results | None = None
        """The last evaluation, on rank 0."""
        self._evaluator = evaluator
        self._state = state
        self._metrics = metrics
        self._last_step = last_step
        self._about = about
        self._process: ScoringProcess | None = None
        self._pending: _Pending | None = None

    def evaluate(self) -> None:
        """Evaluate the model as it is; every rank calls it.

        Raises:
            Interrupted: on every rank, because one of them was asked to leave.
            Exception: what scoring this evaluation or the one before raises.
        """
        self.finish()
        step, measures, state = self._state.step, self._evaluator.measures, self._state
        if step == self._last_step or measures.patience:
            self._take(step, self._evaluator.evaluate(step, self._metrics), state.weights())
            if step < self._last_step:
                state.stops = process_group.broadcast_object(is_over(state.patience, measures.patience))
            return
        if process_group.is_main() and self._process is None:
            self._process = ScoringProcess()  # is ready by the time that something is found
            self._evaluator.watch.look_at(self._process.find_death)
        if self._process is not None:
            self._metrics.hold()
        jobs = dict(self._evaluator.detect(step, self._metrics))
        if self._process is not None:
            self._process.submit(list(jobs.values()))
            self._pending = _Pending(step, list(jobs), self._copy_weights())

    def after_step(self, leaves: bool) -> None:
        """Take the score if it has come; wait for it if the run `leaves`. Every rank calls it."""
        pending = self._pending
        if pending is None:
            return
        assert self._process is not None
        # Not at the evaluated step itself: what its checkpoint holds must not depend on a race.
        if leaves or (self._state.step > pending.step and self._process.is_ready()):
            self.finish()

    def before_save(self) -> dict[str, Any]:
        """Wait for the score unless it is this step's; what a checkpoint has to hold besides the state."""
        if self._pending is not None and self._pending.step == self._state.step:
            self._pending.is_saved = True
            return {"owes_evaluation": True}
        self.finish()
        return {}

    def finish(self) -> None:
        """Wait for the score that is missing, if any, and write what comes of it."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        self._evaluator.watch.again("waiting for the score", may_take_long=True)
        assert self._process is not None
        found = dict(zip(pending.names, self._process.result(), strict=True))
        results = self._evaluator.report(pending.step, found, self._metrics)
        self._metrics.release()
        self._take(pending.step, results, pending.weights)
        if pending.is_saved:
            changes = {"best": self._state.best, "owes_evaluation": False}
            attempt(partial(amend_checkpoint, self._evaluator.output.checkpoints, pending.step, changes))

    def __enter__(self) -> TrainingEvaluations:
        """Start nothing yet."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Collect what is missing, unless the run has to end now, and end the process."""
        try:
            if self._has_time(error):
                self.finish()
        except Exception as another:
            if error is None:
                raise
            logger.error("the last evaluation is lost: %s", another)
        finally:
            if self._process is not None:
                self._process.close()

    def _has_time(self, error: BaseException | None) -> bool:
        """Whether to wait for the score: a fault ends the run within seconds."""
        if error is None or isinstance(error, (Interrupted, NonFiniteError, DataError)):
            return True
        return self._process is not None and isinstance(error, Exception) and self._process.is_ready(_SECONDS)

    def _copy_weights(self) -> dict[str, dict[str, Tensor]]:
        """The weights as they are now, whatever becomes of them."""
        average = self._state.average
        averages = None if average is None else _copy_to_host(average.tensors)
        return weights_by_model(_copy_to_host(self._state.model.state_dict()), averages)

    def _take(self, step: int, results: Results | None, weights: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Remember the results, and keep the better weights if they are the best so far."""
        self.results = results
        measures, best = self._evaluator.measures, self._state.best
        name = measures.best_metric
        chosen, value = find_best(results, name)
        if measures.patience:
            self._state.patience = wait_on(self._state.patience, name, value, measures.min_delta)
        if value is not None and (name not in best or is_better(name, value, best[name])):
            path = self._evaluator.output.best_model
            content = file_content(weights, chosen, self._about)
            # One that could not be written shall not be what later ones are held against.
            if self._evaluator.refused.attempt(path, partial(write_file, path, content)):
                self._state.best = {name: value, "step": step}


def _copy_to_host(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to("cpu", copy=True) for name, tensor in weights.items()}
