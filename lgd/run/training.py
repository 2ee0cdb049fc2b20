"""A training from its first or next step to its last evaluation: the loop with all that belongs around it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch

from lgd import __version__
from lgd.build import Model, build_loop_options, build_schedule, build_sides, build_train_loader, compiles
from lgd.config.keys import flatten
from lgd.config.load import dump_config
from lgd.config.schema import Config
from lgd.data.index import AnnotationIndex
from lgd.engine.averaging import WeightAverage
from lgd.engine.checkpoint import Checkpoint, CheckpointError, find_newest, save_checkpoint, write_file
from lgd.engine.loop import TrainState, train
from lgd.engine.metrics import MetricsWriter, StepRecord
from lgd.engine.nonfinite import NonFinitePolicy
from lgd.engine.progress import Progress
from lgd.evaluation.results import Results
from lgd.ranks import process_group
from lgd.run.best import file_content, find_best, is_over, say_why
from lgd.run.context import RunContext
from lgd.run.data import Origin
from lgd.run.evaluations import Evaluator, TrainingEvaluations
from lgd.run.output import shorten
from lgd.run.resume import Share, restore
from lgd.trackers.tracker import Log

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Training:
    """What is trained, on what, and from where.

    Attributes:
        cfg: the settings, fitted to the data and the ranks.
        share: how the images of a step are shared out.
        model: where it will run, with its first weights.
        index: the training sets as one.
        origin: the data sets as the checkpoint and files of weights know them.
        checkpoint: where to go on; None begins anew.
        average: of the student's weights; None without one.
    """

    cfg: Config
    share: Share
    model: Model
    index: AnnotationIndex
    origin: Origin
    checkpoint: Checkpoint | None
    average: WeightAverage | None = None

    def about(self) -> dict[str, Any]:
        """What a file of weights says besides them."""
        classes = {"names": list(self.index.class_names), "category_ids": list(self.index.category_ids)}
        about = {"config": flatten(self.cfg), "classes": classes, "version": __version__}
        return {**about, **self.origin.about()}


def train_and_evaluate(training: Training, evaluator: Evaluator, context: RunContext) -> Results | None:
    """Run the loop from the checkpoint or from the start, and write the final weights.

    Returns:
        The last evaluation on rank 0, None on the others.

    Raises:
        Interrupted: on every rank, because one of them was asked to leave; what there is to save is saved.
    """
    cfg, output = training.cfg, context.output
    about, last_step = training.about(), cfg.solver.max_iter
    state = _make_state(training, context)
    unwritten = []
    if training.checkpoint is not None:
        restore(cfg, state, training.checkpoint, about["classes"])
        unwritten = training.checkpoint.state.get("unwritten_metrics", [])
    if not training.origin.keeps_best:
        state.best, state.patience = {}, {}  # of another test set
    if not cfg.test.patience:
        state.patience = {}
    state.stops = not state.owes_evaluation and is_over(state.patience, cfg.test.patience)
    with MetricsWriter(
        output.root if process_group.is_main() else None,
        last_step,
        first_iteration=state.step,
        repeats_evaluation=state.owes_evaluation,
        unwritten=unwritten,
        log=Log(cfg.log.trackers, cfg.log.project, dump_config(cfg)),
    ) as metrics:
        if (state.step < last_step and not state.stops) or state.owes_evaluation:
            evaluations = TrainingEvaluations(evaluator, state, metrics, last_step=last_step, about=about)
            _run_loop(training, state, evaluations, metrics, context)
            results = evaluations.results
        else:
            # The evaluation of this step came before its checkpoint, so it is in the metrics already.
            logger.info("step %d of %d: nothing left to train", state.step, last_step)
            results = evaluator.evaluate(state.step, None)
        if process_group.is_main():
            if state.stops:
                context.history.closing = (
                    f"stopped at step {state.step} of {last_step}: {say_why(state.patience)}"
                )
                logger.info("%s", context.history.closing)
            chosen, _ = find_best(results, cfg.test.best_metric)
            content = file_content(state.weights(), chosen, about)
            context.refused.attempt(output.final_model, lambda: write_file(output.final_model, content))
            for path, reason in metrics.flush().items():
                context.refused.note(path, reason)
    return results


def _make_state(training: Training, context: RunContext) -> TrainState:
    """What a training begins with."""
    cfg, device = training.cfg, context.device
    progress = Progress(
        device, loss_jump=cfg.train.loss_jump, name_images=partial(_name_images, training.index)
    )
    sides = build_sides(cfg, training.model, device)
    return TrainState(training.model, sides, progress, average=training.average)


def _name_images(index: AnnotationIndex, image_ids: Sequence[int]) -> str:
    """Ids and files of images."""
    places = {image_id: place for place, image_id in enumerate(index.image_ids.tolist())}
    return shorten([f"{each} ({index.file_name(places[each])})" for each in image_ids], limit=16)


def _go_back(training: Training, state: TrainState, context: RunContext) -> int | None:
    """Put the weights back to the last checkpoint that was due, on every rank; returns its step, if any.

    Those that were written on leaving do not count, so that a run that left and went on does the same.
    """
    period = training.cfg.solver.checkpoint_period
    if state.step < period:
        return None
    context.watch.again("going back to a checkpoint", may_take_long=True)
    folder = context.output.checkpoints
    found = find_newest(folder, period=period) or find_newest(folder)
    if found is None:
        return None
    state.load_weights(found.state)
    return found.step


def _run_loop(
    training: Training,
    state: TrainState,
    evaluations: TrainingEvaluations,
    metrics: MetricsWriter,
    context: RunContext,
) -> None:
    """Train from `state` on, with evaluations and checkpoints at their steps."""
    cfg, device, last_step = training.cfg, context.device, training.cfg.solver.max_iter

    def save(state: TrainState, leaves: bool) -> None:
        context.watch.require()
        owing = evaluations.before_save()
        about = {**training.about(), "seed": cfg.seed, "share": asdict(training.share)}
        about["threads"] = torch.get_num_threads()
        content = {**state.state_dict(), **owing, **about, "unwritten_metrics": metrics.waiting()}
        problem, must = "", leaves or state.stops or state.step == last_step
        if process_group.is_main():
            context.hold.require(look=True)
            try:
                folder, keep = context.output.checkpoints, cfg.train.keep_checkpoints
                save_checkpoint(folder, state.step, content, keep=keep)
            except CheckpointError as error:
                problem = str(error)
                logger.error("%s", problem if must else f"{problem}; training goes on")
        if must:
            problem = process_group.broadcast_object(problem)  # nobody is gone before rank 0 has written
            if problem:
                raise CheckpointError(f"asked to leave, but {problem}" if leaves else problem)

    def shall_leave() -> bool:
        leaves = context.leaving.after_step()
        context.hold.step = state.step
        context.hold.require()
        evaluations.after_step(leaves)
        return leaves

    def report(record: StepRecord) -> None:
        context.hold.require()
        metrics.log(record)

    batches = iter(build_train_loader(cfg, training.index, first_step=state.step, device=device))
    with context.channel.explaining(lambda: f"step {state.step + 1} of {last_step}"), evaluations:
        train(
            state,
            batches,
            build_schedule(cfg),
            replace(build_loop_options(cfg), compiled=compiles(cfg, device)),
            device=device,
            report=report,
            evaluate=lambda state: evaluations.evaluate(),
            save=save,
            shall_leave=shall_leave,
            watch=context.watch,
            nonfinite=NonFinitePolicy(
                cfg.train.on_nonfinite,
                cfg.train.max_nonfinite,
                partial(_go_back, training, state, context),
            ),
        )
