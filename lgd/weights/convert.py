"""Weights of one kind to another: `lgd convert IN OUT --to KIND [--config-file F] [KEY VALUE ...]`."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lgd import __version__, exits
from lgd.build import Model, build_model
from lgd.build.weights import config_of_weights, fill_model
from lgd.config.keys import flatten
from lgd.config.load import config_hash, load_config
from lgd.config.schema import Config
from lgd.config.values import ConfigError
from lgd.engine.checkpoint import FORMAT, save_file
from lgd.events import add_json_flag, event
from lgd.files import typed_path
from lgd.run.complaints import answer
from lgd.run.log import log_as_json, start_logging
from lgd.weights import (
    fetch_weights,
    read_checkpoint_file,
    write_detectron2_model,
    write_reference_checkpoint,
    write_student,
)

logger = logging.getLogger("lgd.weights.convert")  # also where it is run as a module, by the name of __main__


@dataclass(frozen=True)
class _Conversion:
    """What is written: a model with its weights, its configuration, and the names of its classes if known."""

    model: Model
    cfg: Config
    classes: Mapping[str, Any] | None

    def about(self) -> dict[str, Any]:
        classes = {} if self.classes is None else {"classes": dict(self.classes)}
        return {"config": flatten(self.cfg), "version": __version__, **classes}


def convert(
    source: str, target: Path, kind: str, *, config_file: str | None, overrides: Sequence[str]
) -> None:
    """Load `source` into the model that a configuration describes, and write it as `kind` to `target`.

    Args:
        source: as MODEL.WEIGHTS.
        target: the file to write.
        kind: one of `WRITERS`.
        config_file: the recipe of the model; None takes the settings from `source`, where it is one of our
            checkpoints.
        overrides: KEY VALUE pairs over those settings.

    Raises:
        ValueError: one of `USER_ERRORS`.
    """
    weights = read_checkpoint_file(fetch_weights(source))
    if config_file is None:
        cfg = config_of_weights(source, weights, overrides)
    else:
        cfg = load_config(config_file, overrides)
    if cfg.num_classes == 0:
        raise ConfigError("NUM_CLASSES 0 takes the classes from the data, which is not read here; set it")
    model = build_model(cfg)
    logger.info("%s", fill_model(cfg, model, source).summary())
    classes = weights.metadata.get("classes") if weights.kind == "lgd" else None
    WRITERS[kind](target, _Conversion(model, cfg, classes))
    logger.info("%s written as %s", target, kind, extra=event("written", file=str(target), weights=kind))


def _write_student(target: Path, conversion: _Conversion) -> None:
    about = {**conversion.about(), "config_sha256": config_hash(conversion.cfg)}
    write_student(target, conversion.model, about)


def _write_detectron2(target: Path, conversion: _Conversion) -> None:
    options = conversion.cfg.model
    write_detectron2_model(
        target, conversion.model, pixel_mean=options.pixel_mean, pixel_std=options.pixel_std
    )


def _write_reference(target: Path, conversion: _Conversion) -> None:
    options = conversion.cfg.model
    write_reference_checkpoint(
        target, conversion.model, pixel_mean=options.pixel_mean, pixel_std=options.pixel_std
    )


def _write_full(target: Path, conversion: _Conversion) -> None:
    content = {"format": FORMAT, "model": conversion.model.state_dict(), **conversion.about()}
    save_file(target, content)


WRITERS: Mapping[str, Callable[[Path, _Conversion], None]] = {
    "student": _write_student,
    "detectron2": _write_detectron2,
    "reference": _write_reference,
    "full": _write_full,
}


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="lgd convert",
        description="Write weights of one kind as another; see docs/weights.md.",
    )
    parser.add_argument("source", metavar="IN", help="a file, or as MODEL.WEIGHTS")
    parser.add_argument("target", metavar="OUT", type=typed_path, help="the file to write")
    parser.add_argument(
        "--to",
        required=True,
        choices=sorted(WRITERS),
        help="student: it alone, as safetensors; detectron2, reference: by their names; full: a checkpoint",
    )
    parser.add_argument(
        "--config-file", metavar="RECIPE", help="recipe of the model, where IN does not hold its settings"
    )
    add_json_flag(parser)
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="settings over the recipe's")
    return parser.parse_intermixed_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, or 2 for what the user can mend."""
    arguments = parse_arguments(argv)
    if arguments.json:
        log_as_json()
    else:
        start_logging(rank=0)
    return answer(partial(_convert, arguments), arguments.target)


def _convert(arguments: argparse.Namespace) -> int:
    convert(
        arguments.source,
        arguments.target,
        arguments.to,
        config_file=arguments.config_file,
        overrides=arguments.opts,
    )
    return exits.DONE


if __name__ == "__main__":
    sys.exit(main())
