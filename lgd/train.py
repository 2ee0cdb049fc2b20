"""Train or evaluate: `python -m lgd.train --config-file F [--resume] [--eval-only] [KEY VALUE ...]`."""

from __future__ import annotations

from lgd import exits

if __name__ == "__main__":
    exits.leave_on_ctrl_c()

import os
import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from lgd.ending import as_program, end
from lgd.ranks.cores import CoresWatch
from lgd.ranks.interruption import Interruption, leave_with_parent

if TYPE_CHECKING:
    import argparse


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    import argparse  # takes its time, in which Ctrl-C would not be handled yet

    from lgd.events import add_json_flag

    parser = argparse.ArgumentParser(
        prog="lgd train",
        description="Train a detector, with LGD or without, or evaluate it.",
        epilog="Under a launcher the workers are already there; alone, --num-gpus N starts N of them. "
        f"Exit codes: {exits.DONE} done, {exits.USER_ERROR} what you can mend, {exits.RUN_AGAIN} asked to "
        f"leave by SIGUSR2 or SIGTERM (saved, run me again), {exits.CTRL_C} Ctrl-C; others are faults.",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--config-file", metavar="RECIPE", help="a YAML file, or a name of lgd recipes")
    source.add_argument(
        "--data", metavar="ROOT", help="a folder of data, or a line as in DATASETS.TRAIN: writes a recipe"
    )
    _add_wishes(parser.add_argument_group("with --data"))
    parser.add_argument(
        "--resume", action="store_true", help="go on from the newest checkpoint of OUTPUT_DIR"
    )
    parser.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS and stop")
    parser.add_argument(
        "--find-batch", action="store_true", help="say how large a batch fits into the memory, and stop"
    )
    add_json_flag(parser)
    parser.add_argument("--num-gpus", type=_positive, default=1, metavar="N", help="workers on this machine")
    parser.add_argument(
        "--num-machines", type=_positive, default=1, metavar="M", help="machines that take part"
    )
    parser.add_argument(
        "--machine-rank", type=int, default=0, metavar="R", help="number of this machine, from 0"
    )
    parser.add_argument("--dist-url", default="auto", metavar="URL", help="tcp://HOST:PORT of machine 0")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="settings over the recipe's")
    options = parser.parse_intermixed_args(argv)
    wishes = {name: getattr(options, name) for name in _WISHES}
    if options.data is None and any(wishes.values()):
        parser.error(f"--{next(name for name in wishes if wishes[name]).replace('_', '-')} goes with --data")
    if options.data is not None and options.eval_only:
        parser.error("--eval-only goes with --config-file OUTPUT_DIR/recipe.yaml")
    return options


_WISHES = ("detector", "size", "epochs", "method", "output", "recipe_only")


def _add_wishes(group: argparse._ArgumentGroup) -> None:
    from lgd.files import typed_path

    detectors = ("retinanet", "fcos", "atss", "poto", "gfl", "faster_rcnn", "mask_rcnn")
    group.add_argument("--detector", choices=detectors, help="default: retinanet")
    group.add_argument(
        "--size",
        choices=("small", "base"),
        help="Lite0 where it is installed, else a small ResNet; or R-50; by the machine",
    )
    group.add_argument("--epochs", type=_positive, metavar="N", help="passes over the data")
    group.add_argument("--method", choices=("plain", "lgd"), help="by the length of the training")
    group.add_argument(
        "--output", type=typed_path, metavar="DIR", help="OUTPUT_DIR; default: outputs/ and the folder's name"
    )
    group.add_argument("--recipe-only", action="store_true", help="write the recipe, and stop")


def _positive(text: str) -> int:
    import argparse

    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def main(argv: Sequence[str] | None = None, *, is_program: bool = False) -> int:
    """Run the command line; returns the exit code, one of `lgd.exits`.

    SIGUSR2 and SIGTERM are caught meanwhile: the run saves and returns `exits.RUN_AGAIN`.

    Args:
        argv: the arguments; None takes the program's.
        is_program: the process ends with the code (see `lgd.ending`), which no later signal may change.
    """
    if is_program:
        as_program(partial(_main, argv, is_program=True))
    return _main(argv, is_program=False)


def _main(argv: Sequence[str] | None, *, is_program: bool) -> int:
    with Interruption(until_exit=is_program) as interruption:
        cores = CoresWatch.begin()
        if "TORCHELASTIC_RUN_ID" in os.environ:
            leave_with_parent()
        arguments = sys.argv[1:] if argv is None else argv
        options = parse_arguments(arguments)
        # Imports torch and the rest, which takes seconds: signals are caught by now.
        from lgd.command import Reporter, execute

        reporter = Reporter(interruption)
        if is_program:
            reporter.take_over()
        try:
            return execute(options, arguments, interruption, cores)
        except BaseException as error:
            if is_program:  # in here: what the error holds on to, such as lost workers, is not torn down
                end(partial(reporter.report, error))
            if not reporter.expects(error):
                raise
            return reporter.report(error)


if __name__ == "__main__":
    main(is_program=True)
