"""The methods with a pretrained teacher from the configuration: FGFI, PKD and CrossKD."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace

from torch import nn

from lgd.build.weights import fill_model
from lgd.config.keys import with_values
from lgd.config.load import load_config
from lgd.config.schema import Config
from lgd.config.values import ConfigError
from lgd.detectors.protocol import Detector
from lgd.distill.crosskd import CrossHeadImitation
from lgd.distill.distiller import PlainStudent
from lgd.distill.fgfi import FeatureImitation
from lgd.distill.imitation import ImitatingStudent
from lgd.distill.pkd import LabelGuidedImitation, PearsonImitation
from lgd.weights.classes import Classes
from lgd.weights.report import WeightsError, list_names

logger = logging.getLogger(__name__)

_TEACHER = "MODEL.DISTILLATOR.TEACHER"
_FEATURES = ("student.backbone.", "student.neck.")


def read_teacher_config(cfg: Config) -> Config:
    """Read the teacher's recipe, or take the student's own settings where none is given.

    Raises:
        ConfigError: there are no weights for the teacher, or it expects images of another channel order.
    """
    distillator = cfg.model.distillator
    teacher = distillator.teacher
    if not teacher.weights:
        raise ConfigError(
            f"MODEL.DISTILLATOR.METHOD {distillator.method} needs {_TEACHER}.WEIGHTS, a trained detector"
        )
    if not teacher.config_file:
        return cfg
    of_teacher = load_config(teacher.config_file)
    if of_teacher.input.format != cfg.input.format:
        raise ConfigError(
            f"{_TEACHER}.CONFIG_FILE {teacher.config_file} reads {of_teacher.input.format} images, the "
            f"student {cfg.input.format}; both see the same ones"
        )
    return replace(of_teacher, num_classes=cfg.num_classes)


def build_imitation(cfg: Config, student: Detector, teacher: Detector) -> ImitatingStudent:
    """Build the configured method around a student and its teacher.

    Raises:
        ConfigError: the two do not go together.
    """
    method = cfg.model.distillator.method
    try:
        return _METHODS[method](cfg, student, teacher)
    except ValueError as error:
        raise ConfigError(f"MODEL.DISTILLATOR.METHOD {method}: {error}") from error


def _build_fgfi(cfg: Config, student: Detector, teacher: Detector) -> FeatureImitation:
    """With the anchors of MODEL.ANCHOR_GENERATOR."""
    anchors, fgfi = cfg.model.anchor_generator, cfg.model.distillator.fgfi
    return FeatureImitation(
        student=student,
        teacher=teacher,
        anchor_sizes=anchors.sizes,
        aspect_ratios=anchors.aspect_ratios,
        iou_ratio=fgfi.iou_ratio,
        weight=fgfi.lambda_,
    )


def _build_pkd(cfg: Config, student: Detector, teacher: Detector) -> PearsonImitation:
    return PearsonImitation(student=student, teacher=teacher, weight=cfg.model.distillator.pkd.lambda_)


def _build_crosskd(cfg: Config, student: Detector, teacher: Detector) -> CrossHeadImitation:
    options = cfg.model.distillator.crosskd
    return CrossHeadImitation(
        student=student,
        teacher=teacher,
        layer=options.layer,
        class_weight=options.lambda_class,
        box_weight=options.lambda_box,
    )


_METHODS: Mapping[str, Callable[[Config, Detector, Detector], ImitatingStudent]] = {
    "FGFI": _build_fgfi,
    "PKD": _build_pkd,
    "CrossKD": _build_crosskd,
}


def _built_as(cfg: Config) -> str:
    """By which settings the teacher is built, where none name a recipe of its own."""
    named = cfg.model.distillator.teacher.config_file
    return "" if named else f" (with the student's settings, as {_TEACHER}.CONFIG_FILE names no recipe)"


def load_teacher(cfg: Config, model: nn.Module, classes: Classes | None) -> None:
    """Fill the pretrained teacher of a model, if it has one, from MODEL.DISTILLATOR.TEACHER.WEIGHTS.

    Args:
        cfg: the configuration.
        model: as built from it.
        classes: of the data. Where the teacher's predictions count its weights are put into their order;
            where its features alone do, they are taken as they are.

    Raises:
        WeightsError: they are not those of a trained detector, or of one of other classes whose predictions
            count.
    """
    if isinstance(model, LabelGuidedImitation):
        teacher = model.pretrained
    elif isinstance(model, ImitatingStudent):
        teacher = model.teacher
    else:
        return
    of_teacher, source = read_teacher_config(cfg), cfg.model.distillator.teacher.weights
    predicts = isinstance(model, CrossHeadImitation)
    if predicts:
        of_teacher = with_values(of_teacher, {"MODEL.WEIGHTS_IGNORE_CLASSES": False})
    try:
        report = fill_model(of_teacher, PlainStudent(teacher), source, classes if predicts else None)
    except WeightsError as error:
        raise WeightsError(f"{_TEACHER}.WEIGHTS{_built_as(cfg)}: {error}") from error
    untrained = [name for name in report.untrained() if predicts or name.startswith(_FEATURES)]
    if untrained:
        raise WeightsError(
            f"{source} ({report.kind}): not a trained detector, so there is nothing to imitate; it lacks "
            f"{list_names(untrained)}"
        )
    logger.info("teacher: %s", report.summary())
