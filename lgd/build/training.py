"""Optimizers, schedules, loop options, loaders and first weights from the configuration."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import cast

import torch
from torch import nn

from lgd.build.augmentations import build_augmentations
from lgd.build.imitation import load_teacher
from lgd.build.model import Model, compiles
from lgd.build.weights import fill_model
from lgd.config.schema import Config
from lgd.config.solver import resolve_solver
from lgd.config.values import ConfigError
from lgd.data.canvases import Canvas, augmented_canvases, static_canvases
from lgd.data.collate import Layout
from lgd.data.decoding import Decoding
from lgd.data.index import AnnotationIndex
from lgd.data.loader import test_loader, train_loader
from lgd.data.outlines import require_masks
from lgd.data.picture_cache import make_cache
from lgd.data.transforms import Crop
from lgd.distill.distiller import LabelGuidedDistiller
from lgd.distill.schedule import DistillSchedule
from lgd.engine.averaging import WeightAverage
from lgd.engine.loop import LoopOptions, Side
from lgd.engine.optim import LRSchedule, build_optimizer
from lgd.evaluation.coco import require_backend
from lgd.ranks.process_group import get_rank, get_world_size
from lgd.structures import Batch
from lgd.weights.classes import Classes
from lgd.weights.kind import BACKBONE
from lgd.weights.report import LoadReport, WeightsError, list_names
from lgd.words import counted

logger = logging.getLogger(__name__)


def build_sides(cfg: Config, model: Model, device: torch.device) -> list[Side]:
    """Build the optimizer and schedule of the student (with the adapter) and of the teacher."""
    parameters: dict[str, dict[str, nn.Parameter]] = {"student": {}, "teacher": {}}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameters["teacher" if name.startswith("teacher.") else "student"][name] = parameter
    return [_build_side(cfg, name, side, device) for name, side in parameters.items() if side]


def _build_side(cfg: Config, name: str, parameters: Mapping[str, nn.Parameter], device: torch.device) -> Side:
    solver = resolve_solver(cfg, "teacher" if name == "teacher" else "student")
    multiplier = cfg.solver.backbone_multiplier
    slower = [] if multiplier == 1.0 else [each for each in parameters if each.startswith(BACKBONE)]
    optimizer = build_optimizer(
        [parameter for each, parameter in parameters.items() if each not in slower],
        kind=solver.optimizer,
        lr=solver.base_lr,
        momentum=solver.momentum,
        weight_decay=solver.weight_decay,
        fused=_is_fused(cfg, solver.optimizer, device),
        slower=[parameters[each] for each in slower],
    )
    schedule = LRSchedule(
        base_lr=solver.base_lr,
        kind=solver.lr_scheduler_name,
        steps=solver.steps,
        gamma=solver.gamma,
        warmup_factor=solver.warmup_factor,
        warmup_iters=solver.warmup_iters,
        warmup_method=solver.warmup_method,
        max_iter=cfg.solver.max_iter,
    )
    return Side(name, optimizer, schedule, multiplier)


def _is_fused(cfg: Config, kind: str, device: torch.device) -> bool:
    """Whether one kernel updates all parameters; on a CPU that of SGD would hardly save anything."""
    wanted = cfg.train.fused_optimizer
    return device.type == "cuda" or (device.type == "cpu" and kind == "ADAMW") if wanted == "auto" else wanted


def build_average(cfg: Config, model: Model) -> WeightAverage | None:
    """Begin the moving average of the student's weights, if there shall be one."""
    ema = cfg.train.ema
    if not ema.enabled:
        return None
    return WeightAverage(cast(nn.Module, model.student), decay=ema.decay, warmup=ema.warmup_iters)


def build_schedule(cfg: Config) -> DistillSchedule:
    """Build the phases of LGD; a plain student has none."""
    distillator, last = cfg.model.distillator, cfg.solver.max_iter
    if not distillator.enabled:
        return DistillSchedule(pre_nondistill=0, post_nondistill=0, pre_freeze=0, max_iter=last)
    head = distillator.head
    return DistillSchedule(
        pre_nondistill=distillator.pre_nondistill_iters,
        post_nondistill=distillator.post_nondistill_iters,
        pre_freeze=distillator.pre_freeze_student_backbone_iters,
        max_iter=last,
        head_fixed=last if head.mode == "fixed" else head.fixed_iters,
        head_ramp=head.ramp_iters,
        weight_steps=_weight_steps(cfg),
        weight_gamma=distillator.lambda_gamma,
    )


def _weight_steps(cfg: Config) -> tuple[int, ...]:
    """Where the distillation's weight changes: as set, or where the student's rate falls."""
    steps = cfg.model.distillator.lambda_steps
    return resolve_solver(cfg, "student").steps if steps is None else steps


def build_loop_options(cfg: Config) -> LoopOptions:
    """Build the numbers of the training loop."""
    clip = cfg.solver.clip_gradients
    return LoopOptions(
        max_iter=cfg.solver.max_iter,
        images_per_step=cfg.solver.ims_per_batch,
        log_period=cfg.log_period,
        eval_period=cfg.test.eval_period,
        checkpoint_period=cfg.solver.checkpoint_period,
        accumulate_steps=cfg.train.accumulate_steps,
        clip_kind=clip.clip_type if clip.enabled else "none",
        clip_limit=clip.clip_value,
        clip_norm_type=clip.norm_type,
        mixed_precision=cfg.solver.amp.enabled,
        seed=cfg.seed,
    )


def micro_batch_size(cfg: Config) -> int:
    """Images of one forward pass on one rank.

    Raises:
        ConfigError: the batch does not divide.
    """
    shares = get_world_size() * cfg.train.accumulate_steps
    if cfg.solver.ims_per_batch % shares:
        raise ConfigError(
            f"SOLVER.IMS_PER_BATCH {cfg.solver.ims_per_batch} does not divide into "
            f"{counted(get_world_size(), 'rank')} x TRAIN.ACCUMULATE_STEPS {cfg.train.accumulate_steps}; "
            f"choose a multiple of {shares}"
        )
    return cfg.solver.ims_per_batch // shares


def reads_masks(cfg: Config) -> bool:
    """Whether the detector predicts instance masks or the teacher reads them."""
    distillator = cfg.model.distillator
    return cfg.model.mask_on or (distillator.enabled and distillator.label_encoder.load_labelmap)


def uses_static_canvases(cfg: Config, device: torch.device) -> bool:
    """Whether training batches are padded to one of a few canvases."""
    wanted = cfg.train.static_canvases
    return device.type == "cuda" and compiles(cfg, device) if wanted == "auto" else wanted


def training_canvases(cfg: Config, device: torch.device) -> tuple[Canvas, ...]:
    """The canvases that training batches are padded to; none where each batch has its own."""
    if not uses_static_canvases(cfg, device):
        return ()
    common = static_canvases(cfg.input.min_size_train, cfg.input.max_size_train)
    return tuple(dict.fromkeys([*common, *augmented_canvases(common, build_augmentations(cfg))]))


def build_decoding(cfg: Config) -> Decoding:
    """How files become pixels; a range that is not settled is all of 16 bits."""
    options, cache_dir = cfg.input, cfg.dataloader.cache_dir
    return Decoding(
        value_range=None if options.range == "auto" else options.range,
        scaled=options.scaled_decoding,
        cache_dir=Path(cache_dir) if cache_dir else None,
    )


def flip_probability(cfg: Config) -> float:
    """Share of training images that are mirrored left to right."""
    return 0.5 if cfg.input.random_flip == "horizontal" else 0.0


def build_crop(cfg: Config) -> Crop | None:
    """What part is taken of training images; None for all of each."""
    crop = cfg.input.crop
    return Crop(crop.type, crop.size) if crop.enabled else None


def build_train_loader(
    cfg: Config, index: AnnotationIndex, *, first_step: int, device: torch.device
) -> Iterable[Batch]:
    """Open this rank's endless training batches for a device, from those of `first_step` on.

    Raises:
        ConfigError: the folder for decoded pictures cannot be written to.
    """
    options, loader = cfg.input, cfg.dataloader
    make_picture_cache(cfg)
    repeating = loader.sampler_train == "RepeatFactorTrainingSampler"
    return train_loader(
        index,
        image_format=options.format,
        batch_size=micro_batch_size(cfg),
        num_accumulation_steps=cfg.train.accumulate_steps,
        world_size=get_world_size(),
        rank=get_rank(),
        seed=cfg.seed,
        start=first_step * cfg.train.accumulate_steps,
        min_sizes=options.min_size_train,
        min_size_sampling=options.min_size_train_sampling,
        max_size=options.max_size_train,
        flip_prob=flip_probability(cfg),
        crop=build_crop(cfg),
        augmentations=build_augmentations(cfg),
        num_workers=loader.num_workers,
        on_bad_image=loader.on_bad_image,
        filter_empty=loader.filter_empty_annotations,
        aspect_ratio_grouping=loader.aspect_ratio_grouping,
        repeat_threshold=loader.repeat_threshold if repeating else 0.0,
        weights=cfg.datasets.weights,
        layout=Layout(canvases=training_canvases(cfg, device), channels_last=cfg.train.channels_last),
        decoding=build_decoding(cfg),
        decode_on=device if loader.decode_on_gpu else None,
        pin_memory=device.type == "cuda",
        with_masks=reads_masks(cfg),
    )


def make_picture_cache(cfg: Config) -> None:
    """Make the folder for decoded pictures, if there shall be one.

    Raises:
        ConfigError: it cannot be written to.
    """
    folder = cfg.dataloader.cache_dir
    if not folder:
        return
    try:
        make_cache(Path(folder))
    except OSError as error:
        raise ConfigError(f"DATALOADER.CACHE_DIR {folder} cannot be written to: {error.strerror}") from error


def build_test_loader(cfg: Config, index: AnnotationIndex, *, pin_memory: bool) -> Iterable[Batch]:
    """Open this rank's share of a test set."""
    return test_loader(
        index,
        image_format=cfg.input.format,
        batch_size=cfg.test.ims_per_batch,
        world_size=get_world_size(),
        rank=get_rank(),
        min_size=cfg.input.min_size_test,
        max_size=cfg.input.max_size_test,
        num_workers=cfg.dataloader.num_workers,
        on_bad_image=cfg.dataloader.on_bad_image,
        layout=Layout(channels_last=cfg.train.channels_last),
        decoding=build_decoding(cfg),
        pin_memory=pin_memory,
        with_masks=reads_masks(cfg),
    )


def require_scorable(cfg: Config, indices: Iterable[AnnotationIndex]) -> None:
    """See that detections on test sets will be scored, which would otherwise show after hours of training.

    Raises:
        ConfigError: what counts the matches is not installed.
        DataError: the model predicts masks, and an object has none.
    """
    require_backend(cfg.train.eval_backend)
    for index in indices if reads_masks(cfg) else ():
        require_masks(index)


def load_initial_weights(
    cfg: Config, model: Model, classes: Classes | None = None, *, to_evaluate: bool = False
) -> None:
    """Fill the model from MODEL.WEIGHTS, if any, and a pretrained teacher; say what was loaded and what not.

    Args:
        cfg: the configuration.
        model: as built from it.
        classes: of the data; None takes the weights' as they are.
        to_evaluate: whether the model is evaluated as it then is, so that nothing may be left to training.

    Raises:
        WeightsError: the weights cannot be used, or lack something that is to be evaluated.
    """
    load_teacher(cfg, model, classes)
    if not cfg.model.weights:
        return
    report = fill_model(cfg, model, cfg.model.weights, classes)
    logger.info("%s", report.summary())
    if to_evaluate:
        _refuse_untrained(cfg, model, report)


def _refuse_untrained(cfg: Config, model: Model, report: LoadReport) -> None:
    untrained = [name for name in report.untrained() if name.startswith("student.")]
    if untrained:
        raise WeightsError(
            f"{report.source} ({report.kind}): not a trained detector, so there is nothing to evaluate; "
            f"it lacks {list_names(untrained)}"
        )
    shows_teacher = isinstance(model, LabelGuidedDistiller) and cfg.model.distillator.eval_teacher
    if shows_teacher and any(name.startswith(("teacher.", "adapter.")) for name in report.untrained()):
        raise WeightsError(
            f"{report.source} ({report.kind}): holds the student alone; evaluate it with "
            "MODEL.DISTILLATOR.EVAL_TEACHER False"
        )
