"""What `python -m lgd.train` does once its arguments are read: a run, or the start of several workers."""

from __future__ import annotations

import argparse
import errno
import logging
import sys
from collections.abc import Sequence

from lgd import exits
from lgd.config.load import load_config
from lgd.data.errors import ImageError
from lgd.engine.progress import NonFiniteError
from lgd.launch import launch_workers, started_by_launcher
from lgd.ranks import process_group
from lgd.ranks.interruption import Interrupted, Interruption
from lgd.ranks.process_group import LaunchInfo
from lgd.ranks.store import RanksError
from lgd.run.lock import FolderLostError
from lgd.run.output import start_logging
from lgd.run.run import USER_ERRORS, run

logger = logging.getLogger(__name__)

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EIO)


def execute(options: argparse.Namespace, argv: Sequence[str], interruption: Interruption) -> int:
    """Do what the command line says; returns the exit code.

    Args:
        options: the arguments as `lgd.train` reads them.
        argv: the arguments as they were typed.
        interruption: what asks this process to save and leave.
    """
    launch = LaunchInfo.from_environment()
    rank = launch.rank
    start_logging(rank)
    are_together = True
    try:
        cfg = load_config(options.config_file, options.opts)
        if options.num_gpus * options.num_machines > 1 and not started_by_launcher():
            return launch_workers(
                argv,
                interruption,
                num_workers=options.num_gpus,
                num_machines=options.num_machines,
                machine_rank=options.machine_rank,
                dist_url=options.dist_url,
            )
        run(
            cfg,
            interruption,
            resume=options.resume,
            eval_only=options.eval_only,
            only_find_batch=options.find_batch,
        )
    except Interrupted as reason:
        logger.info("%s; exit code %d: run me again", reason, exits.RUN_AGAIN)
        return exits.RUN_AGAIN
    except ImageError as error:
        fails = cfg.dataloader.on_bad_image == "fail"
        way_out = "; mend it, or go on without such images (DATALOADER.ON_BAD_IMAGE skip)" if fails else ""
        return _fail(f"{error}{way_out}", rank)
    except USER_ERRORS as error:
        # What all ranks run into is said once a machine; an image or a loss is one rank's own.
        is_own = isinstance(error, NonFiniteError)
        return _fail(error, rank) if is_own or launch.local_rank == 0 else exits.USER_ERROR
    except (RanksError, FolderLostError) as error:
        are_together = False
        return _fail(error, rank, exits.FAULT)
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        return _fail(f"{error.strerror}: {error.filename or 'OUTPUT_DIR'}; what was saved before stays", rank)
    except KeyboardInterrupt:
        return exits.CTRL_C
    finally:
        if are_together:
            process_group.shutdown()
    return exits.DONE


def _fail(error: Exception | str, rank: int, code: int = exits.USER_ERROR) -> int:
    message = " ".join(str(error).split())
    sys.stderr.write(f"error: {message}\n" if rank == 0 else f"error on rank {rank}: {message}\n")
    return code
