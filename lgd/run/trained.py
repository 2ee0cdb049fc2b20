"""A trained model from what a training leaves: a file of weights, or a run's folder."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from torch import nn

from lgd.build import build_model
from lgd.build.training import build_decoding
from lgd.build.weights import config_of_weights
from lgd.config.load import load_config
from lgd.config.schema import Config
from lgd.config.values import ConfigError
from lgd.data.collate import Layout
from lgd.detectors.protocol import Detector
from lgd.distill.distiller import PlainStudent
from lgd.engine.checkpoint import load_newest
from lgd.export.load import is_exported, load_exported, run_compiled
from lgd.files import at_home
from lgd.inference.model import InputRule, TrainedModel, run_eagerly
from lgd.inference.side_by_side import Parts
from lgd.layers.bfloat16 import multiplies_bfloat16
from lgd.layers.prediction import for_prediction
from lgd.run.output import OutputFolder
from lgd.weights.classes import Classes
from lgd.weights.files import EMPTY_PATH, LoadedWeights, read_checkpoint_file
from lgd.weights.load import load_weights
from lgd.weights.report import WeightsError, list_names
from lgd.weights.sources import fetch_weights
from lgd.words import counted

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainedStudent:
    """What `lgd.load` and `lgd export` make of weights.

    Attributes:
        cfg: the settings, without distillation.
        classes: what its labels mean.
        detector: it, on the CPU, in evaluation mode.
        rule: how it wants pictures.
    """

    cfg: Config
    classes: Classes
    detector: Detector
    rule: InputRule


def load(
    path: str | os.PathLike[str],
    device: str | torch.device | None = None,
    backend: str | None = None,
    precision: str | None = None,
) -> TrainedModel:
    """Load a trained model to predict with; of one that was distilled, the student alone.

    Args:
        path: `model_best.pth`, `model_final.pth` or a checkpoint of a run; a student as safetensors, as
            `lgd convert` writes it; the folder of a run, of which the best model is taken, else the final
            one, else the newest checkpoint; or a file that `lgd export` wrote.
        device: where it shall run, "cpu", "cuda" or "cuda:1"; None for CUDA where there is one, and for the
            CPU of an exported file.
        backend: what runs it: "torch" or "compile" (torch.compile) for weights, "onnx" (onnxruntime) or
            "openvino" for an ONNX file, "torch" for one of torch.export; None for the first of these.
        precision: of weights, "float32" or "bfloat16" (autocast); None for that of the training, but for
            float32 where the device does not multiply bfloat16.

    Raises:
        ValueError: `precision` is neither.
        WeightsError: there is no such file, or it is no trained model, or does not say how it is built, or
            `backend` does not run it, or an exported file was given a precision.
        ConfigError: its settings are none of ours, or torch does not see the device.
        ImportError: the runtime is not there; the message names the extra.
    """
    if precision not in (None, "float32", "bfloat16"):
        raise ValueError(f"precision {precision!r}: choose float32 or bfloat16")
    file = at_home(path)
    if is_exported(file):
        if precision is not None:
            raise WeightsError(
                f"{path}: an exported file has its precision; leave {precision} out, or export with --half"
            )
        return load_exported(file, _choose_device(device or "cpu"), backend)
    if backend not in (None, "torch", "compile"):
        raise WeightsError(
            f"{path}: weights are run by torch or compile, not by {backend}; write a file for it: "
            f"lgd export {path} model.onnx, and give that"
        )
    place = _choose_device(device)
    student = read_student(path)
    module = cast(nn.Module, student.detector).to(place)
    if student.cfg.train.channels_last:
        module.to(memory_format=torch.channels_last)
    run = run_compiled if backend == "compile" else run_eagerly
    as_trained = student.cfg.solver.amp.enabled and multiplies_bfloat16(place) is not False
    lower = as_trained if precision is None else precision == "bfloat16"
    return TrainedModel(
        run(for_prediction(student.detector), place, mixed_precision=lower),
        student.rule,
        class_names=student.classes.names,
        category_ids=student.classes.category_ids,
        with_masks=student.cfg.model.mask_on,
        device=place,
        parts=None if backend == "compile" else Parts(),
    )


def read_student(path: str | os.PathLike[str], num_detections: int | None = None) -> TrainedStudent:
    """Build the student of a file or folder, as `load` takes it, with its weights.

    Args:
        path: weights or the folder of a run.
        num_detections: at most so many of an image; None for as many as its settings say.

    Raises:
        WeightsError: see `load`.
        ConfigError: see `load`.
    """
    file = _find_file(path)
    weights = read_checkpoint_file(file)
    cfg = _config_of(file, weights)
    if num_detections is not None:
        cfg = replace(cfg, test=replace(cfg.test, detections_per_image=num_detections))
    classes = _classes_of(file, weights, cfg)
    del weights  # with optimizers and teacher, much larger than the student
    rule = InputRule(
        cfg.input.min_size_test,
        cfg.input.max_size_test,
        cfg.input.format,
        Layout(channels_last=cfg.train.channels_last),
        cfg.test.ims_per_batch,
        build_decoding(cfg),
    )
    return TrainedStudent(cfg, classes, _build_student(cfg, file).eval().student, rule)


def _choose_device(device: str | torch.device | None) -> torch.device:
    try:
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        raise ConfigError(f"the device is {device!r}; give cpu, cuda or cuda:NUMBER") from None
    if place.type not in ("cpu", "cuda"):
        raise ConfigError(f"the device is {device!r}; give cpu, cuda or cuda:NUMBER")
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"the device is {device!r}, but torch sees {torch.cuda.device_count()} of CUDA; give cpu"
        )
    return place


def _find_file(path: str | os.PathLike[str]) -> Path:
    """The file of weights that is meant."""
    text = os.fspath(path)
    if not text:
        raise WeightsError(EMPTY_PATH)
    folder = at_home(text)
    if is_exported(folder) or folder.suffix.lower() == ".xml":
        raise WeightsError(f"{text}: an exported model; give the weights that it was made of")
    if not folder.is_dir():
        return fetch_weights(text)
    output = OutputFolder(folder)
    for file in (output.best_model, output.final_model):
        if file.is_file():
            return file
    newest = load_newest(output.checkpoints)
    if newest is None:
        raise WeightsError(
            f"{text}: no run's folder: neither {output.best_model.name} nor {output.final_model.name} nor "
            "checkpoints are in it"
        )
    return newest.path


def _config_of(file: Path, weights: LoadedWeights) -> Config:
    """The settings that the file holds, or those of the run in whose folder it lies."""
    runs = [folder / "config.yaml" for folder in (file.parent, file.parent.parent)]
    recipe = next((path for path in runs if path.is_file()), None)
    if "config" in weights.metadata:
        cfg = config_of_weights(str(file), weights)
    elif weights.kind == "lgd" and recipe is not None:
        cfg = load_config(recipe)
    else:
        raise WeightsError(
            f"{file}: does not say how its model is built; make a file that does: lgd convert {file} OUT "
            "--to full --config-file RECIPE"
        )
    off = replace(cfg.model.distillator, enabled=False)
    return replace(cfg, model=replace(cfg.model, weights="", distillator=off))


def _classes_of(file: Path, weights: LoadedWeights, cfg: Config) -> Classes:
    """The classes that the file names, else numbers."""
    try:
        classes = Classes.of_file(weights.metadata)
    except WeightsError as error:
        raise WeightsError(f"{file}: {error}") from None
    if classes is None:
        logger.warning("%s: does not name its classes; they are called by their labels", file)
        classes = Classes([str(label) for label in range(cfg.num_classes)], list(range(cfg.num_classes)))
    if len(classes.names) != cfg.num_classes or not cfg.num_classes:
        raise WeightsError(
            f"{file}: names {counted(len(classes.names), 'class', 'classes')}, but its NUM_CLASSES is "
            f"{cfg.num_classes}"
        )
    return classes


def _build_student(cfg: Config, file: Path) -> PlainStudent:
    model = build_model(cfg)
    assert isinstance(model, PlainStudent)
    report = load_weights(
        model,
        file,
        stride_in_1x1=cfg.model.resnets.stride_in_1x1,
        pixel_mean=cfg.model.pixel_mean,
        pixel_std=cfg.model.pixel_std,
        image_format=cfg.input.format,
    )
    if report.untrained():
        raise WeightsError(
            f"{file} ({report.kind}): not a trained detector; it lacks {list_names(report.untrained())}"
        )
    logger.info("%s", report.summary())
    return model
