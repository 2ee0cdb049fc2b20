"""Trained detectors for other runtimes: `lgd export WEIGHTS OUT.onnx|OUT.pt2 [KEY VALUE ...]`."""

from __future__ import annotations

import argparse
import json
import logging
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lgd.build import build_model
from lgd.build.weights import config_of_weights, fill_model
from lgd.config.keys import flatten
from lgd.config.load import config_hash, load_config
from lgd.config.schema import Config
from lgd.config.values import ConfigError
from lgd.export.detector import ExportedDetector, export_program
from lgd.export.onnx import write_onnx
from lgd.run.log import start_logging
from lgd.run.run import USER_ERRORS
from lgd.weights import fetch_weights, read_checkpoint_file

logger = logging.getLogger("lgd.export")

_ENDINGS = (".onnx", ".pt2")


def export(
    source: str,
    target: Path,
    *,
    size: tuple[int, int] | None,
    batch_size: int | None,
    config_file: str | None,
    overrides: Sequence[str],
) -> None:
    """Load a detector and write it, from raw pixels to detections, for another runtime.

    Args:
        source: as MODEL.WEIGHTS.
        target: the file to write; its ending is one of .onnx and .pt2.
        size: (H, W) of the canvas, the only one that the file takes; None for any.
        batch_size: images, the only number that the file takes; None for any.
        config_file: the recipe of the model; None takes the settings from `source`.
        overrides: KEY VALUE pairs over those settings.

    Raises:
        ValueError: one of `USER_ERRORS`.
        ImportError: a package of an extra is not there; the message names the extra.
    """
    if target.suffix not in _ENDINGS:
        raise ConfigError(f"{target}: ends in neither {' nor '.join(_ENDINGS)}")
    weights = read_checkpoint_file(fetch_weights(source))
    cfg = (
        config_of_weights(source, weights, overrides)
        if config_file is None
        else load_config(config_file, overrides)
    )
    if cfg.num_classes == 0:
        raise ConfigError("NUM_CLASSES 0 takes the classes from the data, which is not read here; set it")
    model = build_model(cfg)
    logger.info("%s", fill_model(cfg, model, source).summary())
    detector = model.student
    coarsest = max(detector.strides.values())
    if size is not None and (size[0] % coarsest or size[1] % coarsest):
        raise ConfigError(f"--size {size[0]}x{size[1]}: give multiples of {coarsest}, the coarsest stride")
    exported = ExportedDetector(detector, flips_channels=cfg.input.format == "BGR")
    program = export_program(exported, batch_size=batch_size, size=size)
    classes = weights.metadata.get("classes") if weights.kind == "lgd" else None
    about = _describe(cfg, coarsest, classes)
    if target.suffix == ".onnx":
        write_onnx(program, target, about)
    else:
        torch.export.save(program, target, extra_files={"lgd.json": json.dumps(about)})
    logger.info("%s written", target)


def _describe(cfg: Config, coarsest: int, classes: Any) -> dict[str, Any]:
    """What a reader of the file needs to know to feed it and to name what it finds."""
    resize = {
        "short_side": cfg.input.min_size_test,
        "longest_side": cfg.input.max_size_test,
        "padded_to_multiples_of": coarsest,
    }
    known = {} if classes is None else {"classes": classes}
    settings = {key: str(value) for key, value in flatten(cfg).items()}
    return {"resize": resize, "settings": settings, "settings_hash": config_hash(cfg), **known}


def _read_size(text: str) -> tuple[int, int] | None:
    if text == "dynamic":
        return None
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    if found is None or "0" in found.groups():
        raise argparse.ArgumentTypeError(f"{text!r} is neither HEIGHTxWIDTH in pixels nor 'dynamic'")
    return int(found[1]), int(found[2])


def _read_batch(text: str) -> int | None:
    if text == "dynamic":
        return None
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of images nor 'dynamic'")
    return int(text)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="lgd export", description="Write a trained detector, from raw pixels to detections."
    )
    parser.add_argument("source", metavar="WEIGHTS", help="a file, or as MODEL.WEIGHTS")
    parser.add_argument("target", metavar="OUT", help="the file to write: .onnx, or .pt2 for torch.export")
    parser.add_argument("--size", type=_read_size, default=None, help="HEIGHTxWIDTH, or dynamic (default)")
    parser.add_argument("--batch", type=_read_batch, default=None, help="images, or dynamic (default)")
    parser.add_argument("--max-detections", type=_read_batch, metavar="D", help="at most so many of an image")
    parser.add_argument(
        "--config-file", metavar="RECIPE", help="recipe of the model, where WEIGHTS do not hold its settings"
    )
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="settings over the recipe's")
    return parser.parse_intermixed_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, or 2 for what the user can mend."""
    arguments = parse_arguments(argv)
    start_logging(rank=0)
    overrides = list(arguments.opts)
    if arguments.max_detections is not None:
        overrides += ["TEST.DETECTIONS_PER_IMAGE", str(arguments.max_detections)]
    try:
        export(
            arguments.source,
            Path(arguments.target),
            size=arguments.size,
            batch_size=arguments.batch,
            config_file=arguments.config_file,
            overrides=overrides,
        )
    except (*USER_ERRORS, ImportError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return 2
    return 0
