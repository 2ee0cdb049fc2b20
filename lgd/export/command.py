"""Trained detectors for other runtimes: `lgd export WEIGHTS OUT.onnx|OUT.pt2`."""

from __future__ import annotations

import argparse
import logging
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lgd import exits
from lgd.config.keys import flatten
from lgd.config.load import config_hash
from lgd.config.values import ConfigError
from lgd.data.canvases import Canvas, tight_canvas
from lgd.data.errors import DataError
from lgd.data.transforms import resized_size
from lgd.events import add_json_flag, event
from lgd.export.about import About
from lgd.export.check import HALF_TOLERANCE, Comparison, Tolerance, compare, join_comparisons
from lgd.export.detector import ExportedDetector, export_program, write_program
from lgd.export.load import RUNTIMES, load_exported
from lgd.export.onnx import require_onnx, write_onnx
from lgd.export.winograd import mark_convolutions
from lgd.files import prepare_file, typed_path
from lgd.inference.model import InputRule, TrainedModel, run_eagerly
from lgd.inference.sources import find_sources
from lgd.run.complaints import answer, complain
from lgd.run.log import log_as_json, start_logging
from lgd.run.trained import TrainedStudent, read_student

logger = logging.getLogger("lgd.export")

_USUAL_SIDE = 480
"""Short side of pictures that are not resized, pixels: nobody knows."""


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="lgd export",
        description="Write a trained detector, from raw pixels to detections, for other runtimes.",
        epilog=f"Exit codes: {exits.DONE} done, {exits.USER_ERROR} what you can mend (a --check beyond the "
        f"tolerance too), {exits.CTRL_C} Ctrl-C.",
    )
    parser.add_argument("weights", metavar="WEIGHTS", help="a file of weights, or the folder of a run")
    parser.add_argument(
        "target", metavar="OUT", type=typed_path, help="the file to write: .onnx, or .pt2 for torch.export"
    )
    parser.add_argument(
        "--size",
        type=_read_size,
        metavar="HxW",
        help="the only canvas, pixels; dynamic (default): any",
    )
    parser.add_argument(
        "--batch", type=_read_number, metavar="N", help="the only batch; dynamic (default): any"
    )
    parser.add_argument(
        "--max-detections", type=_read_number, metavar="D", help="at most so many of a picture"
    )
    parser.add_argument("--half", action="store_true", help="weights and network in float16")
    parser.add_argument(
        "--winograd",
        action="store_true",
        help="large 3x3 convolutions with fewer products: faster on CPUs, rounded otherwise (ONNX)",
    )
    parser.add_argument(
        "--check", metavar="FOLDER", help="pictures on which to compare the file with the model"
    )
    add_json_flag(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code, one of `lgd.exits`."""
    arguments = parse_arguments(argv)
    if arguments.json:
        log_as_json()
    else:
        start_logging(rank=0, stream=sys.stderr)
    return answer(partial(_export, arguments), arguments.target)


def _export(arguments: argparse.Namespace) -> int:
    target: Path = arguments.target
    if target.suffix not in RUNTIMES:
        raise ConfigError(f"{target}: ends as neither {' nor '.join(RUNTIMES)}")
    if target.suffix == ".onnx":
        require_onnx()
    if arguments.winograd and (target.suffix != ".onnx" or arguments.half):
        raise ConfigError("--winograd is for .onnx files in float32; leave it out")
    if target.is_dir():
        raise ConfigError(f"{target}: is a folder; name the file")
    pictures = None if arguments.check is None else find_sources([arguments.check])
    prepare_file(target)
    student = read_student(arguments.weights, arguments.max_detections)
    about = describe(student, size=arguments.size, num_images=arguments.batch, half=arguments.half)
    write(student, about, target, winograd=arguments.winograd)
    size = target.stat().st_size
    logger.info(
        "%s written, %.1f MB", target, size / 1e6, extra=event("written", file=str(target), bytes=size)
    )
    if pictures is None:
        return exits.DONE
    tolerance = HALF_TOLERANCE if arguments.half else Tolerance()
    found = check(student, about, target, arguments.check, tolerance)
    facts = event("checked", **asdict(found), within=found.is_within(tolerance))
    logger.info("%s", found, extra=facts)
    if not found.is_within(tolerance):
        return complain(
            f"{target}: detects otherwise than {arguments.weights}, beyond {tolerance.pixels:g} px and "
            f"{tolerance.score:g} of a score"
        )
    return exits.DONE


def describe(student: TrainedStudent, *, size: Canvas | None, num_images: int | None, half: bool) -> About:
    """What the file shall say of itself.

    Args:
        student: the model.
        size: the only canvas, pixels; None for any.
        num_images: the only batch; None for any.
        half: whether in float16.

    Raises:
        ConfigError: a canvas that the model cannot take.
    """
    cfg, multiple = student.cfg, student.rule.layout.size_divisibility
    if size is not None and (size[0] % multiple or size[1] % multiple):
        raise ConfigError(f"--size {size[0]}x{size[1]}: give multiples of {multiple}")
    layout = replace(student.rule.layout, canvases=() if size is None else (size,), channels_last=False)
    return About(
        replace(student.rule, image_format="RGB", layout=layout, canvas=size),
        student.classes,
        cfg.model.mask_on,
        num_images,
        half,
        _limits(student),
        {key: str(value) for key, value in flatten(cfg).items()},
        config_hash(cfg),
    )


def write(student: TrainedStudent, about: About, target: Path, *, winograd: bool = False) -> None:
    """Write the file, by its ending.

    Args:
        student: the model.
        about: what the file says of itself.
        target: the file.
        winograd: whether an ONNX file has 3x3 convolutions with fewer products (see `lgd.export.winograd`).

    Raises:
        ImportError: a package of an extra is not there; the message names the extra.
        OSError: the disk is full or the folder read-only.
    """
    model = ExportedDetector(
        student.detector, flips_channels=student.rule.image_format == "BGR", half=about.half
    )
    multiple = about.rule.layout.size_divisibility
    program = export_program(model, batch_size=about.num_images, size=about.rule.canvas, multiple=multiple)
    if target.suffix == ".onnx":
        if winograd:
            mark_convolutions(program, _typical_canvas(about.rule), multiple)
        write_onnx(program, target, about.to_metadata())
    else:
        write_program(program, target, about.to_metadata())


def _typical_canvas(rule: InputRule) -> Canvas:
    """The canvas of most pictures: by the rule, of one that is a third wider than it is high."""
    if rule.canvas is not None:
        return rule.canvas
    height = rule.min_size or _USUAL_SIDE
    size = resized_size(height, height * 4 // 3, rule.min_size, rule.max_size)
    return tight_canvas([size], rule.layout.size_divisibility)


def check(
    student: TrainedStudent, about: About, target: Path, folder: str, tolerance: Tolerance
) -> Comparison:
    """Run the model and its file on the same pictures.

    Raises:
        DataError: there are no pictures.
    """
    exported = load_exported(target, torch.device("cpu"))
    rule = replace(about.rule, image_format=student.rule.image_format)
    eager = TrainedModel(
        run_eagerly(student.detector, torch.device("cpu"), mixed_precision=False),
        rule,
        class_names=about.classes.names,
        category_ids=about.classes.category_ids,
        with_masks=about.with_masks,
        device=torch.device("cpu"),
    )
    batch = about.num_images or 1
    runs = (
        model.stream(folder, 0.0, batch, keep_pixels=False, on_unreadable=lambda found: None)
        for model in (eager, exported)
    )
    found = join_comparisons(
        compare(ours.detections, theirs.detections, tolerance, about.limits)
        for ours, theirs in zip(*runs, strict=True)
    )
    if found.pictures == 0:
        raise DataError(f"{folder}: none of its pictures can be read")
    return found


def _limits(student: TrainedStudent) -> dict[str, float | None]:
    """What decides which detections there are."""
    part: Any = getattr(student.detector, "roi_heads", student.detector)
    return {
        "score_threshold": part.score_thresh_test,
        "nms_threshold": part.nms_thresh_test,
        "detections": part.detections_per_image,
    }


def _read_size(text: str) -> Canvas | None:
    if text == "dynamic":
        return None
    found = re.fullmatch(r"([1-9][0-9]{0,5})x([1-9][0-9]{0,5})", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is neither HEIGHTxWIDTH in pixels nor 'dynamic'")
    return int(found[1]), int(found[2])


def _read_number(text: str) -> int | None:
    if text == "dynamic":
        return None
    if not re.fullmatch(r"[1-9][0-9]{0,5}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number from 1 on nor 'dynamic'")
    return int(text)
