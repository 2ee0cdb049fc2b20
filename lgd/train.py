"""Train or evaluate: `python -m lgd.train --config-file F [--resume] [--eval-only] [KEY VALUE ...]`."""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Sequence

from lgd import distributed
from lgd.config.load import load_config
from lgd.config.values import ConfigError
from lgd.data.errors import DataError, ImageError
from lgd.distributed import LaunchInfo
from lgd.engine.checkpoint import CheckpointError
from lgd.engine.progress import NonFiniteError
from lgd.launch import launch_workers, started_by_launcher
from lgd.output import start_logging
from lgd.run import run
from lgd.weights.report import WeightsError

USER_ERRORS = (ConfigError, DataError, WeightsError, CheckpointError, NonFiniteError)
"""What the user can mend: one line, exit code 2."""

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EIO)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="lgd train",
        description="Train a detector, with LGD or without, or evaluate it.",
        epilog="Under torchrun the workers are already there; alone, --num-gpus N starts N of them.",
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help="a YAML recipe")
    parser.add_argument(
        "--resume", action="store_true", help="go on from the newest checkpoint of OUTPUT_DIR"
    )
    parser.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS and stop")
    parser.add_argument("--num-gpus", type=int, default=1, metavar="N", help="workers on this machine")
    parser.add_argument("--num-machines", type=int, default=1, metavar="M", help="machines that take part")
    parser.add_argument(
        "--machine-rank", type=int, default=0, metavar="R", help="number of this machine, from 0"
    )
    parser.add_argument("--dist-url", default="auto", metavar="URL", help="tcp://HOST:PORT of machine 0")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="settings over the recipe's")
    return parser.parse_intermixed_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 2 for what the user can mend, 130 for Ctrl-C."""
    arguments = parse_arguments(argv)
    rank = LaunchInfo.from_environment().rank
    start_logging(rank)
    try:
        cfg = load_config(arguments.config_file, arguments.opts)
        if arguments.num_gpus * arguments.num_machines > 1 and not started_by_launcher():
            return launch_workers(
                sys.argv[1:] if argv is None else argv,
                num_workers=arguments.num_gpus,
                num_machines=arguments.num_machines,
                machine_rank=arguments.machine_rank,
                dist_url=arguments.dist_url,
            )
        run(cfg, resume=arguments.resume, eval_only=arguments.eval_only)
    except USER_ERRORS as error:
        # What all ranks run into is said once; an image or a loss is one rank's own.
        is_own = isinstance(error, ImageError | NonFiniteError)
        return _fail(error, rank) if is_own or rank == 0 else 2
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        return _fail(f"{error.strerror}: {error.filename or 'OUTPUT_DIR'}; what was saved before stays", rank)
    except KeyboardInterrupt:
        return 130
    finally:
        distributed.shutdown()
    return 0


def _fail(error: Exception | str, rank: int) -> int:
    message = " ".join(str(error).split())
    sys.stderr.write(f"error: {message}\n" if rank == 0 else f"error on rank {rank}: {message}\n")
    return 2


if __name__ == "__main__":
    sys.exit(main())
