"""Fine-grained feature imitation from the configuration: the baseline with a pretrained teacher."""

from __future__ import annotations

import logging
from dataclasses import replace

from lgd.build.weights import fill_model
from lgd.config.load import load_config
from lgd.config.schema import Config
from lgd.config.values import ConfigError
from lgd.detectors.protocol import Detector
from lgd.distill.distiller import PlainStudent
from lgd.distill.fgfi import FeatureImitation

logger = logging.getLogger(__name__)

_TEACHER = "MODEL.DISTILLATOR.TEACHER"


def read_teacher_config(cfg: Config) -> Config:
    """Read the teacher's recipe, or take the student's own settings where none is given.

    Raises:
        ConfigError: there are no weights for the teacher, or it expects images of another channel order.
    """
    teacher = cfg.model.distillator.teacher
    if not teacher.weights:
        raise ConfigError(f"MODEL.DISTILLATOR.METHOD FGFI needs {_TEACHER}.WEIGHTS, a trained detector")
    if not teacher.config_file:
        return cfg
    of_teacher = load_config(teacher.config_file)
    if of_teacher.input.format != cfg.input.format:
        raise ConfigError(
            f"{_TEACHER}.CONFIG_FILE {teacher.config_file} reads {of_teacher.input.format} images, the "
            f"student {cfg.input.format}; both see the same ones"
        )
    return replace(of_teacher, num_classes=cfg.num_classes)


def build_feature_imitation(cfg: Config, student: Detector, teacher: Detector) -> FeatureImitation:
    """Build FGFI around a student and its teacher, with the anchors of MODEL.ANCHOR_GENERATOR."""
    anchors, fgfi = cfg.model.anchor_generator, cfg.model.distillator.fgfi
    try:
        return FeatureImitation(
            student=student,
            teacher=teacher,
            anchor_sizes=anchors.sizes,
            aspect_ratios=anchors.aspect_ratios,
            iou_ratio=fgfi.iou_ratio,
            weight=fgfi.lambda_,
        )
    except ValueError as error:
        raise ConfigError(f"MODEL.DISTILLATOR (FGFI): {error}") from error


def load_teacher(cfg: Config, model: FeatureImitation) -> None:
    """Fill the teacher from MODEL.DISTILLATOR.TEACHER.WEIGHTS: a detector, or the student of a distiller."""
    of_teacher = read_teacher_config(cfg)
    source = cfg.model.distillator.teacher.weights
    report = fill_model(of_teacher, PlainStudent(model.teacher), source)
    logger.info("teacher: %s", report.summary())
