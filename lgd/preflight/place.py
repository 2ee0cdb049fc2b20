"""Where this process stands among all, whatever started it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from lgd.config.values import ConfigError
from lgd.ranks.store import is_loopback


@dataclass(frozen=True)
class Place:
    """One process of a job.

    Attributes:
        rank: its number.
        local_rank: its number on its machine.
        world_size: processes of the job.
        local_world_size: processes on this machine; 0 where the launcher does not say.
        node: number of the machine; -1 where the launcher does not say.
        master_address: where rank 0 can be met.
        master_port: likewise.
        launcher: what started it, for people: "torchrun", "SLURM", "another launcher" or "nothing".
    """

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    local_world_size: int = 1
    node: int = 0
    master_address: str = "localhost"
    master_port: int = 0
    launcher: str = "nothing"

    @property
    def is_one_machine(self) -> bool:
        """Whether all processes are known to be on this machine."""
        return self.local_world_size == self.world_size or is_loopback(self.master_address)


def read_place(environ: Mapping[str, str]) -> Place:
    """Read what torchrun, submitit or Kubernetes (RANK, WORLD_SIZE, ...), or srun alone, has set.

    Raises:
        ConfigError: a variable is missing or no number.
    """
    if "RANK" in environ and "WORLD_SIZE" in environ:
        return _from_torch(environ)
    # A batch script itself is task 0 of no step: only srun's tasks have a step with several of them.
    if "SLURM_STEP_ID" in environ and _number(environ, "SLURM_STEP_NUM_TASKS", 1) > 1:
        return _from_slurm(environ)
    return Place()


def first_host(node_list: str) -> str:
    """Return the first host of a SLURM node list such as "gpu[07-09,12],cpu3": "gpu07"."""
    match = re.match(r"([^\[,]+)(?:\[(\d+)[^\]]*\])?([^,\[]*)", node_list)
    return "".join(part or "" for part in match.groups()) if match else ""


def _from_torch(environ: Mapping[str, str]) -> Place:
    world_size = _number(environ, "WORLD_SIZE", 1)
    if world_size > 1 and not ("MASTER_ADDR" in environ and "MASTER_PORT" in environ):
        raise ConfigError(f"WORLD_SIZE is {world_size}, but MASTER_ADDR or MASTER_PORT is not set")
    rank = _number(environ, "RANK", 0)
    if not 0 <= rank < world_size:
        raise ConfigError(f"RANK {rank} is not in [0, {world_size - 1}] (WORLD_SIZE {world_size})")
    return Place(
        rank=rank,
        local_rank=_number(environ, "LOCAL_RANK", 0),
        world_size=world_size,
        local_world_size=_number(environ, "LOCAL_WORLD_SIZE", 0),
        node=_number(environ, "GROUP_RANK", _number(environ, "SLURM_NODEID", -1)),
        master_address=environ.get("MASTER_ADDR", "localhost"),
        master_port=_number(environ, "MASTER_PORT", 0),
        launcher="torchrun" if "TORCHELASTIC_RUN_ID" in environ else "another launcher",
    )


def _from_slurm(environ: Mapping[str, str]) -> Place:
    nodes = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST", "")
    port = (
        20_000 + _number(environ, "SLURM_JOB_ID", 0) % 20_000
    )  # jobs that share a node must not share a port
    tasks = _number(environ, "SLURM_STEP_NUM_TASKS", 1)
    is_one_node = _number(environ, "SLURM_STEP_NUM_NODES", 0) == 1
    return Place(
        rank=_number(environ, "SLURM_PROCID", 0),
        local_rank=_number(environ, "SLURM_LOCALID", 0),
        world_size=tasks,
        local_world_size=tasks
        if is_one_node
        else 0,  # SLURM_STEP_TASKS_PER_NODE may differ from node to node
        node=_number(environ, "SLURM_NODEID", -1),
        master_address=environ.get("MASTER_ADDR") or first_host(nodes) or "localhost",
        master_port=_number(environ, "MASTER_PORT", port),
        launcher="SLURM",
    )


def _number(environ: Mapping[str, str], name: str, default: int) -> int:
    text = environ.get(name, "")
    try:
        return int(text) if text else default
    except ValueError:
        raise ConfigError(f"{name} is {text!r}, not a number; the launcher's environment is broken") from None
