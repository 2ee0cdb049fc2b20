"""Start several workers of `lgd.train` through torch's elastic launcher, as torchrun would."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlparse

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from lgd.config.values import ConfigError


def started_by_launcher() -> bool:
    """Whether torchrun (or SLURM, submitit, ...) has already placed this process in a group."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def launch_workers(
    arguments: Sequence[str], *, num_workers: int, num_machines: int, machine_rank: int, dist_url: str
) -> int:
    """Run `python -m lgd.train ARGUMENTS` in `num_workers` processes here; return their exit code.

    Args:
        arguments: command line of every worker.
        num_workers: workers of this machine.
        num_machines: machines that take part, each starting its own workers.
        machine_rank: this machine's number, from 0.
        dist_url: "auto" on a single machine, else tcp://HOST:PORT of machine 0.

    Raises:
        ConfigError: a rank or an address that does not fit.
    """
    config = LaunchConfig(
        min_nodes=num_machines,
        max_nodes=num_machines,
        nproc_per_node=num_workers,
        max_restarts=0,
        **_rendezvous(num_machines, machine_rank, dist_url),
    )
    # As torchrun does: workers that each take every core slow one another down.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // num_workers)))
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        elastic_launch(config, sys.executable)("-m", "lgd.train", *arguments)
    except ChildFailedError as error:
        codes = [failure.exitcode for failure in error.failures.values()]
        return next((code for code in codes if code > 0), 1)
    return 0


def _rendezvous(num_machines: int, machine_rank: int, dist_url: str) -> dict[str, Any]:
    if num_machines == 1 and dist_url == "auto":
        return {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "run_id": f"lgd-{os.getpid()}"}
    if not 0 <= machine_rank < num_machines:
        raise ConfigError(f"--machine-rank {machine_rank} is not in [0, {num_machines - 1}] (--num-machines)")
    address = urlparse(dist_url)
    if address.scheme != "tcp" or not address.hostname or not address.port:
        raise ConfigError(f"--dist-url must be tcp://HOST:PORT of machine 0, not {dist_url!r}")
    return {
        "rdzv_backend": "static",
        "rdzv_endpoint": f"{address.hostname}:{address.port}",
        "rdzv_configs": {"rank": machine_rank, "timeout": 900},
        "run_id": "lgd",
    }
