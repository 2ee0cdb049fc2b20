"""A run from its configuration to its results: data, model, training, evaluation, files."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from lgd import __version__
from lgd.build import (
    Model,
    build_model,
    build_test_loader,
    compile_model,
    load_initial_weights,
    micro_batch_size,
    place_model,
    require_scorable,
)
from lgd.config.keys import flatten
from lgd.config.load import dump_config
from lgd.config.schema import Config
from lgd.config.values import ConfigError
from lgd.data.catalog import open_dataset, open_datasets
from lgd.data.index import AnnotationIndex
from lgd.engine.checkpoint import Checkpoint, find_newest
from lgd.evaluation.results import Results, results_table
from lgd.files import write_text_atomically
from lgd.inference.test_sets import TestSet, detect_on_test_sets
from lgd.memory.worst_case import find_batch, tries_worst_shape, try_worst_shape
from lgd.ranks import process_group
from lgd.ranks.agreement import code_facts, require_equal
from lgd.ranks.interruption import Interrupted, Interruption
from lgd.ranks.leaving import Leaving
from lgd.ranks.process_group import LaunchInfo
from lgd.run.context import RunContext
from lgd.run.evaluations import Evaluator
from lgd.run.output import History, OutputFolder, log_to_file, set_earlier_run_aside, shorten
from lgd.run.resume import Starts, adapt_to_ranks, choose_seed, load_state
from lgd.run.training import Training, train_and_evaluate

logger = logging.getLogger(__name__)


def run(
    cfg: Config,
    interruption: Interruption,
    *,
    resume: bool = False,
    eval_only: bool = False,
    only_find_batch: bool = False,
) -> Results | None:
    """Train and evaluate as `cfg` says.

    Args:
        cfg: the whole configuration.
        interruption: what asks the run to save and leave.
        resume: go on from the newest checkpoint of OUTPUT_DIR, if there is one.
        eval_only: evaluate MODEL.WEIGHTS (or, with `resume`, the newest checkpoint) and stop.
        only_find_batch: say how large a batch fits into the memory, and stop.

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
    history = History(output.history)
    with history, channel.explaining(lambda: "the start"):
        channel.meet("the start")
        require_equal({**code_facts(), **flatten(cfg)})
        starts = Starts(output.root)
        context = RunContext(device, channel, Leaving(interruption, channel), output, history, starts)
        try:
            if starts.has_left:
                raise Interrupted("asked to leave, and started again nevertheless")
            if only_find_batch:
                _find_batch(cfg, device)
                results = None
            else:
                resume = resume or (starts.is_restart and not eval_only)
                results = _run(cfg, context, resume, eval_only)
        except Interrupted:
            starts.note_left()
            channel.close()
            raise
        channel.close()
    if results:
        logger.info("%s\n%s", output.results, results_table(results))
    return results


def _run(cfg: Config, context: RunContext, resume: bool, eval_only: bool) -> Results | None:
    """What is done between the ranks' meeting and their parting."""
    device = context.device
    context.leaving.check("before the data was read")
    data = _open_data(cfg, with_training=not eval_only)
    context.leaving.check("before the model was built")
    require_equal({f"data set {index.name}": f"content {index.content_hash[:12]}" for index in data.sets})
    cfg = _settle_classes(cfg, data.sets)
    require_scorable(cfg, data.tests.values())
    checkpoint = find_newest(context.output.checkpoints) if resume else None
    cfg, share, changes = adapt_to_ranks(cfg, checkpoint, process_group.get_world_size())
    cfg = replace(cfg, seed=choose_seed(cfg.seed, checkpoint))
    model = _make_model(cfg, device, checkpoint, eval_only)
    fitting = []
    if data.train is not None:
        compile_model(cfg, model, device)
        if tries_worst_shape(cfg, device):
            fitting = try_worst_shape(cfg, model, data.train, device)
    context.leaving.check("before the first step")
    _open_output(cfg, context, keep=resume or eval_only)
    if not eval_only:
        if process_group.is_main():
            context.history.begin(checkpoint.step if checkpoint else 0, process_group.get_world_size())
        context.starts.note_opened()
    for line in [*changes, *_describe(cfg, model, data.sets, device), *fitting]:
        logger.info("%s", line)
    evaluator = _make_evaluator(cfg, model, data.tests, context)
    if data.train is None:
        return evaluator.evaluate(0, None)
    return train_and_evaluate(Training(cfg, share, model, data.train, checkpoint), evaluator, context)


@dataclass(frozen=True)
class _Data:
    """The data sets of a run: the training sets as one (None for an evaluation alone), and the test sets."""

    train: AnnotationIndex | None
    tests: Mapping[str, AnnotationIndex]

    @property
    def sets(self) -> list[AnnotationIndex]:
        return [*([] if self.train is None else [self.train]), *self.tests.values()]


def _open_data(cfg: Config, *, with_training: bool) -> _Data:
    root = Path(cfg.datasets.root)
    opens = partial(open_datasets, cfg.datasets.train, root)
    return _Data(
        process_group.on_main_first(opens) if with_training else None,
        {name: process_group.on_main_first(partial(open_dataset, name, root)) for name in cfg.datasets.test},
    )


def _make_evaluator(
    cfg: Config, model: Model, tests: Mapping[str, AnnotationIndex], context: RunContext
) -> Evaluator:
    on_cuda = context.device.type == "cuda"
    test_sets = [
        TestSet(name, index, partial(build_test_loader, cfg, index, pin_memory=on_cuda))
        for name, index in tests.items()
    ]
    detect = partial(
        detect_on_test_sets,
        model,
        test_sets,
        device=context.device,
        with_teacher=cfg.model.distillator.eval_teacher,
        mixed_precision=cfg.solver.amp.enabled,
        num_examples=cfg.test.vis_images,
        shall_abandon=context.leaving.during_evaluation,
    )
    return Evaluator(detect, context, backend=cfg.train.eval_backend, image_format=cfg.input.format)


def _find_batch(cfg: Config, device: torch.device) -> None:
    """Log the largest batch that fits; no file is written but the data set's cache."""
    if device.type == "cpu":
        raise ConfigError("--find-batch needs CUDA: memory on the CPU has no such limit to be found")
    index = process_group.on_main_first(partial(open_datasets, cfg.datasets.train, Path(cfg.datasets.root)))
    cfg = _settle_classes(cfg, [index])
    logger.info("%s", find_batch(cfg, place_model(cfg, build_model(cfg), device), index, device))


def _settle_classes(cfg: Config, indices: Sequence[AnnotationIndex]) -> Config:
    """Hold every data set's classes against NUM_CLASSES; 0 takes their number from the first set."""
    if not indices:
        raise ConfigError("there is nothing to do: DATASETS.TRAIN and DATASETS.TEST are empty")
    names = indices[0].class_names
    if cfg.num_classes == 0:
        cfg = replace(cfg, num_classes=len(names))
    for index in indices:
        if len(index.class_names) != cfg.num_classes:
            raise ConfigError(
                f"{index.name} has {len(index.class_names)} classes ({shorten(index.class_names)}) but "
                f"NUM_CLASSES is {cfg.num_classes}; set NUM_CLASSES {len(index.class_names)}, or 0 for "
                "as many as the data has"
            )
        if index.class_names != names:
            raise ConfigError(
                f"{index.name} and {indices[0].name} name their classes differently: "
                f"{shorten(index.class_names)} and {shorten(names)}"
            )
    return cfg


def _make_model(cfg: Config, device: torch.device, checkpoint: Checkpoint | None, eval_only: bool) -> Model:
    """Build the model and fill it from MODEL.WEIGHTS, or for an evaluation from the checkpoint."""
    if eval_only and checkpoint is None and not cfg.model.weights:
        raise ConfigError("--eval-only needs MODEL.WEIGHTS, the weights or checkpoint to evaluate")
    torch.manual_seed(cfg.seed)
    model = build_model(cfg)
    if checkpoint is None:
        load_initial_weights(cfg, model, to_evaluate=eval_only)
    elif eval_only:
        load_state(model, checkpoint)
    return place_model(cfg, model, device)


def _open_output(cfg: Config, context: RunContext, keep: bool) -> None:
    if not process_group.is_main():
        return
    output = context.output
    output.root.mkdir(parents=True, exist_ok=True)
    if not keep:
        set_earlier_run_aside(output.root)
    log_to_file(output.root / "log.txt")
    write_text_atomically(output.config, dump_config(cfg))


def _describe(
    cfg: Config, model: Model, indices: Sequence[AnnotationIndex], device: torch.device
) -> Iterator[str]:
    """Yield the lines that a run begins with: machine, data, classes, model, batch."""
    ranks, micro_steps = process_group.get_world_size(), cfg.train.accumulate_steps
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    yield f"lgd {__version__}, torch {torch.__version__}, {ranks} x {where}, output in {cfg.output_dir}"
    for index in indices:
        yield f"{index.name}: {len(index)} images, {int(index.counts.sum())} objects"
        yield from (f"  {warning}" for warning in index.warnings)
    pairs = zip(indices[0].class_names, indices[0].category_ids, strict=True)
    yield f"{cfg.num_classes} classes (label: name, id): " + shorten(
        [f"{label}: {name}, {category_id}" for label, (name, category_id) in enumerate(pairs)], "; ", 20
    )
    counts = {name: sum(p.numel() for p in part.parameters()) / 1e6 for name, part in model.named_children()}
    yield f"{cfg.model.meta_architecture}: " + ", ".join(f"{name} {n:.1f} M" for name, n in counts.items())
    solver = cfg.solver
    yield (
        f"{solver.ims_per_batch} images a step = {ranks} rank(s) x {micro_steps} micro-batch(es) x "
        f"{micro_batch_size(cfg)}, {solver.max_iter} steps, seed {cfg.seed}"
    )
