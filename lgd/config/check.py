"""What settings must be together, and what is worth a word though it may be meant."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from lgd.config.keys import flatten, known_keys
from lgd.config.read import COMMAND_LINE, Setting
from lgd.config.schema import SIDE_SOLVERS, Config
from lgd.config.values import UNUSED, ConfigError
from lgd.words import counted

_METHODS = ("FGFI", "PKD", "CROSSKD")
"""Sections of MODEL.DISTILLATOR, each of one of its methods."""

_MOST_DIGITS = 300
"""Of a learning rate, so that it is still a number."""


def check_config(cfg: Config) -> None:
    """Check every value by itself and the settings against each other.

    Raises:
        ConfigError: naming the keys, their values and what they must be.
    """
    keys = known_keys()
    for name, value in flatten(cfg).items():
        keys[name].coerce(value, name)
    for complaint in (
        *_folder_complaints(cfg),
        *_model_complaints(cfg),
        *_solver_complaints(cfg),
        *_input_complaints(cfg),
        *_data_complaints(cfg),
    ):
        raise ConfigError(complaint)


def find_doubtful(cfg: Config, settings: Mapping[str, Setting]) -> list[str]:
    """Say what a user has set that will not do what it seems to.

    Args:
        cfg: the configuration.
        settings: what files and command line have set, by key.

    Returns:
        A line for each doubt, none where there is nothing to say.
    """
    return [
        *_without_effect(settings),
        *_needless(cfg),
        *_of_other_methods(cfg, settings),
        *_shadowed(cfg, settings),
        *_beyond_the_end(cfg),
    ]


def _folder_complaints(cfg: Config) -> Iterator[str]:
    if not cfg.output_dir:
        yield "OUTPUT_DIR is empty; name the folder to write to (. for the one that you are in)"
    if not cfg.log.project.strip():
        yield "LOG.PROJECT is empty; name what the runs belong to"


def _model_complaints(cfg: Config) -> Iterator[str]:
    model = cfg.model
    for name, head in (("RETINANET", model.retinanet), ("RPN", model.rpn), ("ROI_HEADS", model.roi_heads)):
        thresholds, labels = head.iou_thresholds, head.iou_labels
        if len(labels) != len(thresholds) + 1 or thresholds != tuple(sorted(thresholds)):
            yield (
                f"MODEL.{name}.IOU_THRESHOLDS {thresholds} must rise, and "
                f"MODEL.{name}.IOU_LABELS {labels} must have one entry more"
            )
    if len(model.swint.depths) != len(model.swint.num_heads):
        yield (
            f"MODEL.SWINT.DEPTHS {model.swint.depths} and MODEL.SWINT.NUM_HEADS {model.swint.num_heads} must "
            "have one entry for each stage"
        )
    channels, heads = model.fpn.out_channels, model.distillator.teacher.nr_transformer_heads
    if model.distillator.enabled and model.distillator.method.startswith("LGD") and channels % heads:
        yield (
            f"MODEL.FPN.OUT_CHANNELS {channels} must be a multiple of "
            f"MODEL.DISTILLATOR.TEACHER.NR_TRANSFORMER_HEADS {heads}"
        )


def _solver_complaints(cfg: Config) -> Iterator[str]:
    values = flatten(cfg)
    for solver in ("SOLVER", *SIDE_SOLVERS):
        own = values[f"{solver}.STEPS"]
        steps = cfg.solver.steps if own is None else own
        if steps != tuple(sorted(steps)):
            yield f"{solver}.STEPS {steps} must rise"
        gamma = values[f"{solver}.GAMMA"] or cfg.solver.gamma
        if len(steps) * math.log10(gamma) > _MOST_DIGITS:
            yield f"{solver}.GAMMA {gamma} at each of {len(steps)} STEPS is more than a number can be"
    lgd = cfg.model.distillator
    if lgd.lambda_gamma != 1 and lgd.lambda_steps is None:
        kind = lgd.student.solver.lr_scheduler_name or cfg.solver.lr_scheduler_name
        if kind != "WarmupMultiStepLR":
            yield (
                f"MODEL.DISTILLATOR.LAMBDA_GAMMA {lgd.lambda_gamma} acts nowhere: {kind} has no STEPS; "
                "set MODEL.DISTILLATOR.LAMBDA_STEPS"
            )
    if len(lgd.lambda_steps or cfg.solver.steps) * math.log10(lgd.lambda_gamma) > _MOST_DIGITS:
        yield f"MODEL.DISTILLATOR.LAMBDA_GAMMA {lgd.lambda_gamma} becomes more than a number can be"
    if cfg.train.ema.enabled and cfg.train.ema.decay == 1:
        yield "TRAIN.EMA.DECAY 1 would leave the average as it begins for ever; set one below, such as 0.9998"
    if cfg.test.patience and not cfg.test.eval_period:
        yield (
            f"TEST.PATIENCE {cfg.test.patience} counts evaluations during the training, of which "
            "TEST.EVAL_PERIOD 0 makes none; set it"
        )
    batch, parts = cfg.solver.ims_per_batch, cfg.train.accumulate_steps
    if batch % parts:
        yield f"SOLVER.IMS_PER_BATCH {batch} must be a multiple of TRAIN.ACCUMULATE_STEPS {parts}"


def _input_complaints(cfg: Config) -> Iterator[str]:
    sizes, sampling = cfg.input.min_size_train, cfg.input.min_size_train_sampling
    if not sizes:
        yield "INPUT.MIN_SIZE_TRAIN is empty; give at least one length in pixels"
    if sampling == "range" and (len(sizes) != 2 or sizes[0] > sizes[1]):
        yield (
            f"INPUT.MIN_SIZE_TRAIN {sizes} must be the shortest and the longest length, since "
            "INPUT.MIN_SIZE_TRAIN_SAMPLING is range"
        )
    if cfg.input.range != "auto" and not cfg.input.range[0] < cfg.input.range[1]:
        yield f"INPUT.RANGE {cfg.input.range} must be (lowest, highest), the values that become 0 and 255"
    crop = cfg.input.crop
    if crop.type.startswith("relative") and max(crop.size) > 1:
        yield f"INPUT.CROP.SIZE {crop.size} must be at most 1, since INPUT.CROP.TYPE is {crop.type}"
    elif crop.type.startswith("absolute") and not all(side.is_integer() for side in crop.size):
        yield f"INPUT.CROP.SIZE {crop.size} must be whole pixels, since INPUT.CROP.TYPE is {crop.type}"
    elif crop.type == "absolute_range" and crop.size[0] > crop.size[1]:
        yield f"INPUT.CROP.SIZE {crop.size} must be (least, most), since INPUT.CROP.TYPE is {crop.type}"
    loader = cfg.dataloader
    if cfg.input.augmentations and loader.decode_on_gpu:
        yield (
            "INPUT.AUGMENTATIONS needs the pixels in the loader, and DATALOADER.DECODE_ON_GPU leaves them to "
            "the device; set one of them back"
        )
    if loader.cache_dir and loader.decode_on_gpu:
        yield (
            "DATALOADER.CACHE_DIR keeps what the loader decodes, and DATALOADER.DECODE_ON_GPU leaves that to "
            "the device; set one of them back"
        )
    if loader.sampler_train == "RepeatFactorTrainingSampler" and loader.repeat_threshold == 0:
        yield (
            "DATALOADER.SAMPLER_TRAIN RepeatFactorTrainingSampler repeats nothing while "
            "DATALOADER.REPEAT_THRESHOLD is 0; set it to the share of images below which a class is rare"
        )


def _data_complaints(cfg: Config) -> Iterator[str]:
    data = cfg.datasets
    if data.weights and len(data.weights) != len(data.train):
        yield (
            f"DATASETS.WEIGHTS {data.weights} must have a number for each of the "
            f"{counted(len(data.train), 'set')} of DATASETS.TRAIN"
        )
    merges = data.classes if isinstance(data.classes, dict) else {}
    for name in (name for name, merged in merges.items() if not merged):
        yield f"DATASETS.CLASSES merges nothing into {name}; write {{{name}: [NAME, NAME]}}"
    names = [name for merged in merges.values() for name in merged] if merges else list(data.classes)
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        yield f"DATASETS.CLASSES names {twice[0]} twice; an object is of one class"


def _without_effect(settings: Mapping[str, Setting]) -> Iterator[str]:
    for name, setting in settings.items():
        key = known_keys()[name]
        if key.doc == UNUSED and setting.value != key.default:
            yield f"{setting.source}: {name} {setting.value} has no effect (nor has it in the reference)"


def _needless(cfg: Config) -> Iterator[str]:
    if cfg.datasets.other_classes == "ignore" and not cfg.datasets.classes:
        yield "DATASETS.OTHER_CLASSES ignore has no effect while DATASETS.CLASSES names no classes"
    lgd, head = cfg.model.distillator, cfg.model.distillator.head
    if lgd.enabled and lgd.image_share != 1 and "LGD" not in lgd.method:
        yield f"MODEL.DISTILLATOR.IMAGE_SHARE has no effect while MODEL.DISTILLATOR.METHOD is {lgd.method}"
    if head.mode != "shared" and (head.fixed_iters or head.ramp_iters):
        yield (
            "MODEL.DISTILLATOR.HEAD.FIXED_ITERS and RAMP_ITERS have no effect while "
            f"MODEL.DISTILLATOR.HEAD.MODE is {head.mode}"
        )


def _of_other_methods(cfg: Config, settings: Mapping[str, Setting]) -> Iterator[str]:
    """Yield each setting of the command line that belongs to a method which is not the one that trains."""
    lgd = cfg.model.distillator
    for name, setting in settings.items():
        section, _, key = name.removeprefix("MODEL.DISTILLATOR.").partition(".")
        is_other = key and section in _METHODS and section not in lgd.method.upper().split("+")
        if setting.source == COMMAND_LINE and lgd.enabled and is_other:
            yield (
                f"{COMMAND_LINE}: {name} {setting.value} has no effect while MODEL.DISTILLATOR.METHOD is "
                f"{lgd.method}"
            )


def _shadowed(cfg: Config, settings: Mapping[str, Setting]) -> Iterator[str]:
    """Yield each SOLVER.X of the command line where student and teacher have their own X from a file."""
    keys = known_keys()
    for name, setting in settings.items():
        names = [solver + name.removeprefix("SOLVER") for solver in SIDE_SOLVERS]
        if setting.source != COMMAND_LINE or names[0] not in keys or keys[names[0]].doc == UNUSED:
            continue
        counting = names if cfg.model.distillator.enabled else names[:1]
        own = [settings[name] for name in counting if name in settings and settings[name].value is not None]
        if len(own) == len(counting) and any(entry.source != COMMAND_LINE for entry in own):
            named = " and ".join(f"{entry.spelling} {entry.value} ({entry.source})" for entry in own)
            yield (
                f"{COMMAND_LINE}: {name} {setting.value} has no effect because of {named}; "
                "set these, or set them to None"
            )


def _beyond_the_end(cfg: Config) -> Iterator[str]:
    end, lgd = cfg.solver.max_iter, cfg.model.distillator
    start, freeze = lgd.pre_nondistill_iters, lgd.pre_freeze_student_backbone_iters
    if lgd.enabled and (start >= end or start > end - lgd.post_nondistill_iters):
        yield (
            f"no iteration distills: MODEL.DISTILLATOR.PRE_NONDISTILL_ITERS {start} and "
            f"POST_NONDISTILL_ITERS {lgd.post_nondistill_iters} leave none of SOLVER.MAX_ITER {end}"
        )
    if lgd.enabled and freeze >= end:
        yield (
            f"the backbone never trains: MODEL.DISTILLATOR.PRE_FREEZE_STUDENT_BACKBONE_ITERS {freeze} is not "
            f"below SOLVER.MAX_ITER {end}"
        )
