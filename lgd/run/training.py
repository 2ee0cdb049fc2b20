"""A training from its first or next step to its last evaluation: the loop with all that belongs around it."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from lgd import __version__
from lgd.build import Model, build_loop_options, build_schedule, build_sides, build_train_loader, compiles
from lgd.config.keys import flatten
from lgd.config.load import dump_config
from lgd.config.schema import Config
from lgd.data.index import AnnotationIndex
from lgd.engine.checkpoint import FORMAT, Checkpoint, attempt, save_checkpoint, save_file
from lgd.engine.loop import TrainState, train
from lgd.engine.metrics import MetricsWriter
from lgd.engine.progress import Progress
from lgd.evaluation.results import Results
from lgd.ranks import process_group
from lgd.run.context import RunContext
from lgd.run.evaluations import Evaluator, TrainingEvaluations
from lgd.run.resume import Share, restore

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Training:
    """What is trained, on what, and from where.

    Attributes:
        cfg: the settings, fitted to the data and the ranks.
        share: how the images of a step are shared out.
        model: where it will run, with its first weights.
        index: the training sets as one.
        checkpoint: where to go on; None begins anew.
    """

    cfg: Config
    share: Share
    model: Model
    index: AnnotationIndex
    checkpoint: Checkpoint | None

    def about(self) -> dict[str, Any]:
        """What a file of weights says besides them."""
        classes = {"names": list(self.index.class_names), "category_ids": list(self.index.category_ids)}
        return {"config": flatten(self.cfg), "classes": classes, "version": __version__}


def train_and_evaluate(training: Training, evaluator: Evaluator, context: RunContext) -> Results | None:
    """Run the loop from the checkpoint or from the start, and write the final weights.

    Returns:
        The last evaluation on rank 0, None on the others.

    Raises:
        Interrupted: on every rank, because one of them was asked to leave; what there is to save is saved.
    """
    cfg, output = training.cfg, context.output
    about, last_step = training.about(), cfg.solver.max_iter
    state = TrainState(
        training.model, build_sides(cfg, training.model, context.device), Progress(context.device)
    )
    if training.checkpoint is not None:
        restore(cfg, state, training.checkpoint, about["classes"])
    metrics = MetricsWriter(
        output.root if process_group.is_main() else None,
        last_step,
        first_iteration=state.step,
        repeats_evaluation=state.owes_evaluation,
    )
    metrics.log_text("config", dump_config(cfg))
    if state.step < last_step or state.owes_evaluation:
        evaluations = TrainingEvaluations(evaluator, state, metrics, last_step=last_step, about=about)
        _run_loop(training, state, evaluations, metrics, context)
        results = evaluations.results
    else:
        # The evaluation of this step came before its checkpoint, so it is in the metrics already.
        logger.info("step %d of %d: nothing left to train", state.step, last_step)
        results = evaluator.evaluate(state.step, None)
    if process_group.is_main():
        save_file(output.final_model, {"format": FORMAT, "model": state.model.state_dict(), **about})
    metrics.close()
    return results


def _run_loop(
    training: Training,
    state: TrainState,
    evaluations: TrainingEvaluations,
    metrics: MetricsWriter,
    context: RunContext,
) -> None:
    """Train from `state` on, with evaluations and checkpoints at their steps."""
    cfg, device, last_step = training.cfg, context.device, training.cfg.solver.max_iter

    def save(state: TrainState) -> None:
        context.watch.require()
        owing = evaluations.before_save()
        about = {**training.about(), "seed": cfg.seed, "share": asdict(training.share)}
        content = {**state.state_dict(), **owing, **about}
        if process_group.is_main():
            write = partial(save_checkpoint, context.output.checkpoints, state.step, content)
            attempt(partial(write, keep=cfg.train.keep_checkpoints), must=state.step == last_step)

    def shall_leave() -> bool:
        leaves = context.leaving.after_step()
        evaluations.after_step(leaves)
        return leaves

    batches = iter(build_train_loader(cfg, training.index, first_step=state.step, device=device))
    with context.channel.explaining(lambda: f"step {state.step + 1} of {last_step}"), evaluations:
        train(
            state,
            batches,
            build_schedule(cfg),
            replace(build_loop_options(cfg), compiled=compiles(cfg, device)),
            device=device,
            report=metrics.log,
            evaluate=lambda state: evaluations.evaluate(),
            save=save,
            shall_leave=shall_leave,
            watch=context.watch,
        )
