"""What `python -m lgd.train` does once its arguments are read, and how it says how that ended."""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn

from lgd import exits
from lgd.config.load import load_config
from lgd.config.values import ConfigError
from lgd.data.errors import ImageError, LoadingError
from lgd.ending import describe, end, last_line
from lgd.engine.progress import NonFiniteError
from lgd.files import say_why, write_text_atomically
from lgd.launch import launch_workers, started_by_launcher
from lgd.ranks import process_group
from lgd.ranks.cores import CoresWatch
from lgd.ranks.interruption import Interrupted, Interruption
from lgd.ranks.process_group import LaunchInfo
from lgd.ranks.store import RanksError
from lgd.ranks.watch import StallError
from lgd.recipe.choices import Wishes
from lgd.recipe.prepare import Request, prepare, recipe_path
from lgd.run.context import Task
from lgd.run.log import TerminalError, log_as_json, start_logging, write_to_log_file
from lgd.run.output import FolderLostError
from lgd.run.run import USER_ERRORS, run
from lgd.run.scoring import ScoringError

logger = logging.getLogger(__name__)

FAULTS = (LoadingError, RanksError, ScoringError, StallError, TerminalError, FolderLostError)
"""What another try can mend, with a message that says it all: one line, exit code 1."""

_OWN_ERRORS = (ImageError, NonFiniteError)
"""What one rank runs into alone; other errors of the user are everyone's, and said once a machine."""

_DISK_ERRORS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO),
    *(errno.ENOTDIR, errno.EISDIR, errno.ENXIO, errno.ELOOP, errno.ENAMETOOLONG, errno.EEXIST),
)
"""What is full, failing or not to be written to; and where something else is in the place of a file."""


def execute(
    options: argparse.Namespace, argv: Sequence[str], interruption: Interruption, cores: CoresWatch
) -> int:
    """Do what the command line says; returns the exit code.

    Args:
        options: the arguments as `lgd.train` reads them.
        argv: the arguments as they were typed.
        interruption: what asks this process to save and leave.
        cores: since the program began.

    Raises:
        Exception: whatever goes wrong, for `Reporter`.
    """
    rank = LaunchInfo.from_environment().rank
    if options.json:
        log_as_json(rank)
    else:
        start_logging(rank)
    recipe, settings = options.config_file, options.opts
    if options.data is not None:
        recipe, settings = _recipe_of_data(options)
        if options.recipe_only:
            return exits.DONE
        flags = {"--resume": options.resume, "--find-batch": options.find_batch, "--json": options.json}
        argv = ["--config-file", recipe, *(flag for flag, is_set in flags.items() if is_set), *settings]
    cfg = load_config(recipe, settings)
    if options.num_gpus * options.num_machines > 1 and not started_by_launcher():
        return launch_workers(
            argv,
            interruption,
            num_workers=options.num_gpus,
            num_machines=options.num_machines,
            machine_rank=options.machine_rank,
            dist_url=options.dist_url,
        )
    try:
        run(cfg, Task(cores, options.resume, options.eval_only, options.find_batch), interruption)
    except Interrupted:
        process_group.shutdown()
        raise
    except ImageError as error:
        if cfg.dataloader.on_bad_image != "fail":
            raise
        raise ImageError(
            f"{error}; mend it, or go on without such images (DATALOADER.ON_BAD_IMAGE skip)"
        ) from error
    process_group.shutdown()
    return exits.DONE


def _recipe_of_data(options: argparse.Namespace) -> tuple[str, list[str]]:
    """The recipe of --data, written where there is none to go on with, and the settings that go over it."""
    if started_by_launcher() or options.num_machines > 1:
        raise ConfigError(
            "--data writes a recipe, which one process does: run lgd train --data ... --recipe-only first, "
            "and start the workers with --config-file OUTPUT_DIR/recipe.yaml"
        )
    request = Request(
        options.data,
        Wishes(options.detector or "retinanet", options.size, options.epochs, options.method),
        options.output,
        options.opts,
        options.num_gpus * options.num_machines,
    )
    path = recipe_path(request)
    if options.resume and path.is_file():
        logger.info("going on with %s", path)
        return str(path), list(options.opts)
    try:
        prepared = prepare(request)
    except FileNotFoundError as error:  # nor can a folder be made there
        reason = say_why(error, path.parent)
        raise ConfigError(f"OUTPUT_DIR {path.parent} cannot be used: {reason}") from error
    for line in prepared.lines:
        logger.info(line)
    return str(prepared.path), []


class Reporter:
    """Says how a program ended: one line, the last one on the terminal; tracebacks are for log.txt."""

    def __init__(self, interruption: Interruption) -> None:
        """Read from the environment which rank this is; `interruption` is what it was asked."""
        self._interruption = interruption
        self._launch = LaunchInfo.from_environment()

    def take_over(self) -> None:
        """Be the one by whom threads and destructors speak too, in a process that ends with what they say."""
        self._interruption.tidy_up_on_ctrl_c()
        self._interruption.give_up = self.give_up
        threading.excepthook = lambda args: self._keep("thread", args.exc_value)
        sys.unraisablehook = lambda args: self._keep("destructor", args.exc_value)

    def give_up(self, error: BaseException) -> NoReturn:
        """End the process because of `error`, from any thread."""
        end(partial(self.report, error))

    def expects(self, error: BaseException) -> bool:
        """Whether a line says all that there is to say about `error`."""
        known = (KeyboardInterrupt, Interrupted, *USER_ERRORS, *FAULTS)
        return isinstance(error, known) or _is_of_disk(error)

    def report(self, error: BaseException) -> int:
        """Say what went wrong; returns the exit code."""
        if self._interruption.is_ctrl_c or isinstance(error, KeyboardInterrupt):
            return exits.CTRL_C
        if isinstance(error, Interrupted):
            logger.info("%s; exit code %d: run me again", error, exits.RUN_AGAIN)
            return exits.RUN_AGAIN
        if isinstance(error, USER_ERRORS):
            if isinstance(error, _OWN_ERRORS) or self._launch.local_rank == 0:
                self._say(str(error))
            return exits.USER_ERROR
        if isinstance(error, OSError) and _is_of_disk(error):
            self._say(f"{say_why(error, 'OUTPUT_DIR')}; what was saved before stays")
            return exits.USER_ERROR
        kept_in = self._keep("main thread", error)
        if self.expects(error):
            self._say(str(error), follows=isinstance(error, RanksError))
        else:
            self._say(describe(error) + (f" (traceback in {kept_in})" if kept_in else ""))
        return exits.FAULT

    def _keep(self, where: str, error: BaseException | None) -> str | None:
        """Write a traceback to log.txt; to the terminal where there is no such file and it is needed."""
        trace = "".join(traceback.format_exception(error)) if error else ""
        kept_in = write_to_log_file(f"rank {self._launch.rank}, {where}:\n{trace}")
        if kept_in is None and error and not self.expects(error):
            with contextlib.suppress(OSError):
                sys.stderr.write(trace)
        return kept_in

    def _say(self, message: str, *, follows: bool = False) -> None:
        """Say the last words, in a line, to whoever listens: terminal, log.txt and launcher.

        Args:
            message: to say.
            follows: whether another rank ended first.
        """
        message = last_line(message)
        rank = self._launch.rank
        line = f"error: {message}" if rank == 0 else f"error on rank {rank}: {message}"
        write_to_log_file(line)
        path = os.environ.get("TORCHELASTIC_ERROR_FILE")
        with contextlib.suppress(OSError):
            if path:
                told = {"message": message, "timestamp": str(int(time.time())), "follows": follows}
                write_text_atomically(Path(path), json.dumps(told))
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.write(line + "\n")
            sys.stderr.flush()


def _is_of_disk(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in _DISK_ERRORS
