"""A run from its configuration to its results: data, model, training, evaluation, files."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import torch

from lgd import __version__
from lgd.build import (
    Model,
    build_model,
    compile_model,
    load_initial_weights,
    micro_batch_size,
    place_model,
    require_scorable,
)
from lgd.build.weights import read_classes
from lgd.config.keys import flatten
from lgd.config.load import dump_config
from lgd.config.schema import Config
from lgd.config.values import ConfigError
from lgd.data.errors import DataError
from lgd.data.index import AnnotationIndex
from lgd.data.workers import WorkersWatch
from lgd.engine.checkpoint import Checkpoint, CheckpointError, find_newest, say_resumable, sealed_steps
from lgd.engine.progress import NonFiniteError
from lgd.evaluation.reach import say_out_of_reach
from lgd.evaluation.results import Results, results_table
from lgd.events import event
from lgd.files import FULL, write_text_atomically
from lgd.memory.worst_case import find_batch, tries_worst_shape, try_worst_shape
from lgd.ranks import process_group
from lgd.ranks.agreement import code_facts, require_equal
from lgd.ranks.channel import Channel
from lgd.ranks.interruption import Interrupted, Interruption
from lgd.ranks.leaving import Leaving
from lgd.ranks.process_group import LaunchInfo
from lgd.ranks.watch import Watch
from lgd.run.context import RunContext, Task
from lgd.run.data import RunData, open_data, open_training_data, trace_data
from lgd.run.lock import FolderError, hold_folder
from lgd.run.log import LOG_FILE, find_broken_terminal, log_to_file, write_to_log_file
from lgd.run.measuring import make_average, make_evaluator, require_best_metric
from lgd.run.output import (
    FolderLostError,
    FolderWatch,
    History,
    OutputFolder,
    set_earlier_run_aside,
    shorten,
)
from lgd.run.precision import advise_precision
from lgd.run.ranges import settle_range
from lgd.run.refused import Refused
from lgd.run.resume import (
    Starts,
    StartsError,
    adapt_to_ranks,
    choose_seed,
    load_to_evaluate,
)
from lgd.run.sharing import require_shared
from lgd.run.soundness import require_sound
from lgd.run.threads import settle_threads
from lgd.run.training import Training, train_and_evaluate
from lgd.trackers.open import find_missing
from lgd.weights.classes import Classes
from lgd.weights.report import WeightsError
from lgd.words import counted

logger = logging.getLogger(__name__)

USER_ERRORS = (ConfigError, DataError, WeightsError, CheckpointError, NonFiniteError, FolderError)
"""What the user can mend: one line, exit code 2."""


def run(cfg: Config, task: Task, interruption: Interruption) -> Results | None:
    """Train and evaluate as `cfg` says.

    Args:
        cfg: the whole configuration.
        task: what to do with it.
        interruption: what asks the run to save and leave.

    Returns:
        The last evaluation on rank 0, None on the others.

    Raises:
        Interrupted: it was asked to leave; what there is to save is saved.
        ValueError: one of `USER_ERRORS`.
    """
    launch = LaunchInfo.from_environment()
    device = process_group.select_device(cfg.model.device, launch.local_rank)
    channel = process_group.init(device, cfg.train.process_group_timeout)
    output = OutputFolder(Path(cfg.output_dir))
    leaving = Leaving(interruption, channel)
    history = History(output.history)
    watch = _make_watch(cfg, channel, interruption, history)
    with watch, channel.explaining(lambda: "the start"):
        channel.meet("the start")
        require_equal({**code_facts(), **flatten(cfg)})
        if task.only_find_batch:
            _find_batch(cfg, device)
            channel.close()
            return None
        starts = Starts(output.root)
        try:
            with hold_folder(output.root, starts.agents, leaving) as hold, history:
                context = RunContext(
                    task, device, channel, leaving, output, hold, Refused(output), watch, history, starts
                )
                watch.look_at(hold.find_problem)
                results = _run_in_folder(cfg, context)
        except Interrupted:
            channel.close()
            raise
        channel.close()
    if results:
        said = event("results", file=str(output.results), results=results)
        logger.info("%s\n%s", output.results, results_table(results), extra=said)
    return results


def _run_in_folder(cfg: Config, context: RunContext) -> Results | None:
    """What is done while OUTPUT_DIR is held: the run, and notes of how it was started and how it ended."""
    starts, checkpoints = context.starts, context.output.checkpoints
    require_shared(context.output, context.hold)
    _require_places(context.output)
    eval_only = context.task.eval_only
    resume = context.task.resume or (starts.is_restart and not eval_only)
    try:
        if starts.has_left:
            raise Interrupted("asked to leave, and started again nevertheless")
        context.leaving.check("before the data was read")
        if resume and not eval_only:
            steps = process_group.broadcast_object(sealed_steps(checkpoints))
            starts.count(_digest(cfg), steps, cfg.train.max_starts_without_progress)
        elif not eval_only:
            starts.forget()
        with _naming_what_stays(checkpoints):
            results = _run(cfg, context, resume)
        context.refused.require_none()
    except Interrupted:
        starts.note_left()
        raise
    except (FolderError, FolderLostError):
        context.history.abandon()
        raise
    except (*USER_ERRORS, KeyboardInterrupt) as error:
        if not eval_only and not isinstance(error, StartsError):
            starts.forget()
        raise
    if not eval_only:
        starts.forget()
    return results


def _require_places(output: OutputFolder) -> None:
    misplaced = process_group.broadcast_object(output.find_misplaced())
    if misplaced:
        raise FolderError(
            f"OUTPUT_DIR {output.root} has something else in the place of {shorten(misplaced)}; move it "
            "away, or choose another OUTPUT_DIR"
        )


def _require_trackers(cfg: Config) -> None:
    missing = process_group.broadcast_object(find_missing(cfg.log.trackers))
    if missing:
        raise ConfigError(missing)


def _digest(cfg: Config) -> str:
    """Tells settings, code and numbers of ranks apart."""
    facts = {**code_facts(), **flatten(cfg), "ranks": process_group.get_world_size()}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


@contextmanager
def _naming_what_stays(checkpoints: Path) -> Iterator[None]:
    """Let errors that end a run although its command was right say from where it can go on."""
    try:
        yield
    except NonFiniteError as error:
        raise NonFiniteError(f"{error}; {say_resumable(checkpoints)}") from error
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise CheckpointError(
            f"{error.strerror}: {error.filename or checkpoints.parent}; {say_resumable(checkpoints)}"
        ) from error


def _make_watch(cfg: Config, channel: Channel, interruption: Interruption, history: History) -> Watch:
    give_up = interruption.give_up

    def end(error: Exception) -> NoReturn:
        assert give_up is not None
        history.end(error)
        give_up(error)

    return Watch(
        channel,
        cfg.train.stall_timeout,
        [WorkersWatch(), find_broken_terminal],
        give_up=end if give_up else None,
        keep=write_to_log_file,
    )


def _run(cfg: Config, context: RunContext, resume: bool) -> Results | None:
    """What is done between the ranks' meeting and their parting."""
    device, world_size, eval_only = context.device, process_group.get_world_size(), context.task.eval_only
    checkpoint = find_newest(context.output.checkpoints) if resume else None
    if checkpoint is not None:
        require_sound(checkpoint)
    trained = _trained_classes(cfg, checkpoint) if eval_only else ()
    data = open_data(cfg, with_training=not eval_only, trained=trained)
    context.leaving.check("before the model was built")
    require_equal(
        {f"data set {index.name}": f"content {index.content_hash[:12]}" for index in data.opened.values()}
    )
    cfg = _settle_classes(cfg, data.sets)
    require_scorable(cfg, data.tests.values())
    if data.train is not None:
        require_best_metric(cfg, data.tests)
        _require_trackers(cfg)
    origin = None if eval_only else trace_data(data, checkpoint, accept=cfg.train.accept_changed_data)
    cfg, share, changes = adapt_to_ranks(cfg, checkpoint, world_size)
    cfg = replace(cfg, seed=choose_seed(cfg.seed, checkpoint))
    cfg, measured = settle_range(cfg, data, checkpoint)
    if data.train is not None:
        changes += settle_threads(device, context.task.cores, checkpoint)
        changes += advise_precision(device, mixed_precision=cfg.solver.amp.enabled)
    model = _make_model(cfg, context, data, checkpoint)
    average = make_average(cfg, model, data, checkpoint)
    fitting = []
    if data.train is not None:
        compile_model(cfg, model, device)
        if tries_worst_shape(cfg, device):
            fitting = try_worst_shape(cfg, model, data.train, device)
    context.leaving.check("before the first step")
    _open_output(cfg, context, keep=resume or eval_only)
    context.channel.meet("the opening of OUTPUT_DIR")
    if not process_group.is_main():
        log_to_file(context.output.root / LOG_FILE, only_ends=True)
    if origin is not None:
        if process_group.is_main():
            context.history.begin(checkpoint.step if checkpoint else 0, world_size, origin.news)
        context.starts.note_opened()
        changes = [*changes, *origin.news]
    for line in [*changes, *_describe(cfg, model, data.sets, device), *measured, *fitting]:
        logger.info("%s", line)
    for index in data.tests.values():
        for line in say_out_of_reach(index, cfg.test.detections_per_image):
            logger.warning("%s", line)
    evaluator = make_evaluator(cfg, model, average, data.tests, context)
    if data.train is None or origin is None:
        return evaluator.evaluate(0, None)
    training = Training(cfg, share, model, data.train, origin, checkpoint, average)
    return train_and_evaluate(training, evaluator, context)


def _find_batch(cfg: Config, device: torch.device) -> None:
    """Log the largest batch that fits; no file is written but the data set's cache."""
    if device.type == "cpu":
        raise ConfigError("--find-batch needs CUDA: memory on the CPU has no such limit to be found")
    index = open_training_data(cfg)
    cfg = _settle_classes(cfg, [index])
    logger.info("%s", find_batch(cfg, place_model(cfg, build_model(cfg), device), index, device))


def _settle_classes(cfg: Config, indices: Sequence[AnnotationIndex]) -> Config:
    """Hold the classes of the data sets, which are the same, against NUM_CLASSES; 0 takes their number."""
    if not indices:
        raise ConfigError("there is nothing to do: DATASETS.TRAIN and DATASETS.TEST are empty")
    names = indices[0].class_names
    if cfg.num_classes == 0:
        return replace(cfg, num_classes=len(names))
    if len(names) != cfg.num_classes:
        raise ConfigError(
            f"{indices[0].name} has {counted(len(names), 'class', 'classes')} ({shorten(names)}) but "
            f"NUM_CLASSES is {cfg.num_classes}; set NUM_CLASSES {len(names)}, or 0 for as many as there "
            "are; DATASETS.CLASSES chooses some of them by name"
        )
    return cfg


def _trained_classes(cfg: Config, checkpoint: Checkpoint | None) -> Sequence[str]:
    """The names of the classes of the weights to evaluate; none where nothing says."""
    if checkpoint is not None:
        trained = Classes.of_file(checkpoint.state)
    else:
        trained = read_classes(cfg) if cfg.model.weights else None
    return trained.names if trained is not None else ()


def _make_model(cfg: Config, context: RunContext, data: RunData, checkpoint: Checkpoint | None) -> Model:
    """Build the model and fill it from MODEL.WEIGHTS, or for an evaluation from the checkpoint."""
    eval_only = data.train is None
    if eval_only and checkpoint is None and not cfg.model.weights:
        raise ConfigError("--eval-only needs MODEL.WEIGHTS, the weights or checkpoint to evaluate")
    torch.manual_seed(cfg.seed)
    model = build_model(cfg)
    classes = Classes(data.sets[0].class_names, data.sets[0].category_ids)
    if checkpoint is None:
        load_initial_weights(cfg, model, classes, to_evaluate=eval_only)
    elif eval_only:
        load_to_evaluate(model, checkpoint, classes)
    return place_model(cfg, model, context.device)


def _open_output(cfg: Config, context: RunContext, keep: bool) -> None:
    if not process_group.is_main():
        return
    output = context.output
    output.clear_leftovers()
    if not keep:
        set_earlier_run_aside(output.root)
    log_to_file(output.root / LOG_FILE)
    context.watch.look_at(FolderWatch(output.root))
    write_text_atomically(output.config, dump_config(cfg))


def _describe(
    cfg: Config, model: Model, indices: Sequence[AnnotationIndex], device: torch.device
) -> Iterator[str]:
    """Yield the lines that a run begins with: machine, data, classes, model, batch."""
    ranks, micro_steps = process_group.get_world_size(), cfg.train.accumulate_steps
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    yield f"lgd {__version__}, torch {torch.__version__}, {ranks} x {where}, output in {cfg.output_dir}"
    for index in indices:
        yield f"{index.name}: {counted(len(index), 'image')}, {counted(int(index.counts.sum()), 'object')}"
        yield from (f"  {warning}" for warning in index.warnings)
    pairs = zip(indices[0].class_names, indices[0].category_ids, strict=True)
    yield f"{counted(cfg.num_classes, 'class', 'classes')} (label: name, id): " + shorten(
        [f"{label}: {name}, {category_id}" for label, (name, category_id) in enumerate(pairs)], "; ", 20
    )
    counts = {name: sum(p.numel() for p in part.parameters()) / 1e6 for name, part in model.named_children()}
    yield f"{cfg.model.meta_architecture}: " + ", ".join(f"{name} {n:.1f} M" for name, n in counts.items())
    solver = cfg.solver
    yield (
        f"{counted(solver.ims_per_batch, 'image')} a step = {counted(ranks, 'rank')} x "
        f"{counted(micro_steps, 'micro-batch', 'micro-batches')} x {micro_batch_size(cfg)}, "
        f"{counted(solver.max_iter, 'step')}, seed {cfg.seed}"
    )
