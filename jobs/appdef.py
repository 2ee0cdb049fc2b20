"""TorchX AppDefs of this project's programs: elastic workers on every node, on any scheduler.

A replica is a node. Each runs one bash line that puts `lgd.launch` in its own place, since only a shell can
read the first node's name (TorchX gives the name of a variable) and find the interpreter. Everything that
comes from the user is quoted, also against TorchX's and Kubernetes' own substitutions.
"""

from __future__ import annotations

import functools
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from torchx import specs

from jobs.text import on_one_line, require_one_line

Component = TypeVar("Component", bound=Callable[..., specs.AppDef])

IMAGE = "lgd:latest"
"""The image that the Dockerfile's first lines say how to build."""

ENVIRONMENT = {
    # Without it a replaced node takes all others down with it.
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
    "PYTHONUNBUFFERED": "1",
}

GRACE_SECONDS = 300
"""How long Kubernetes waits between asking a pod to leave and killing it: time to write a checkpoint."""

CPUS_PER_PROCESS = 6
MEMORY_PER_PROCESS = 16384
"""MiB, shared memory of the data workers included."""


@dataclass(frozen=True)
class Size:
    """How many nodes, and how many processes on each."""

    num_nodes: int
    num_processes: int

    @classmethod
    def parse(cls, text: str) -> Size:
        """Read "2x8" (nodes x processes on each) or "8" (processes on one node).

        Raises:
            ValueError: anything else.
        """
        match = re.fullmatch(r"(?:([1-9]\d*)x)?([1-9]\d*)", text)
        if match is None:
            raise ValueError(f"j must be NODESxPROCESSES such as 2x8, or PROCESSES, not {text!r}")
        return cls(int(match[1] or 1), int(match[2]))


@dataclass(frozen=True)
class Machine:
    """What a node offers: image, resources, environment, mounts.

    Attributes:
        image: container image, for schedulers that use one.
        cpu: cores of a node; 0 for `CPUS_PER_PROCESS` for each process.
        gpu: GPUs of a node; -1 for one for each process.
        memory: MiB of a node; 0 for `MEMORY_PER_PROCESS` for each process.
        named: name of a resource known to TorchX, in place of the three.
        environment: variables on top of `ENVIRONMENT`.
        mounts: TorchX's mount options, see `mount_options`.
        max_retries: how often the scheduler may start the whole job again.
    """

    image: str = IMAGE
    cpu: int = 0
    gpu: int = -1
    memory: int = 0
    named: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    mounts: Sequence[str] = ()
    max_retries: int = 0

    def __post_init__(self) -> None:
        """Refuse what would break a line of a batch script, or is no name of a variable."""
        for what, text in (("image", self.image), ("h", self.named), *(("mounts", m) for m in self.mounts)):
            require_one_line(what, text)
        for name, value in self.environment.items():
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                raise ValueError(f"env: {name!a} is no name of a variable")
            require_one_line(f"env {name}", value)

    def resource(self, num_processes: int) -> specs.Resource:
        """What the scheduler is asked for, for a node of so many processes."""
        if self.named:
            return specs.resource(h=self.named)
        return specs.resource(
            cpu=self.cpu or num_processes * CPUS_PER_PROCESS,
            gpu=num_processes if self.gpu < 0 else self.gpu,
            memMB=self.memory or num_processes * MEMORY_PER_PROCESS,
        )


@dataclass(frozen=True)
class Elastic:
    """How the nodes of a job meet, and what becomes of lost workers.

    Attributes:
        size: nodes and processes.
        port: of the meeting point on the first node; 0 derives it from the job's id.
        join_seconds: how long nodes wait for one another.
        max_restarts: how often a lost worker may bring all back to the newest checkpoint.
        log_dir: folder on the node for a copy of every worker's output; empty for none.
    """

    size: Size
    port: int = 0
    join_seconds: int = 600
    max_restarts: int = 0
    log_dir: str = ""

    def __post_init__(self) -> None:
        """Refuse numbers that the launchers would refuse on the nodes, and line breaks."""
        require_one_line("log_dir", self.log_dir)
        if not 0 <= self.port < 2**16:
            raise ValueError(f"rdzv_port must be in [0, 65535], not {self.port}")
        for what, number, least in (
            ("rdzv_timeout", self.join_seconds, 1),
            ("max_restarts", self.max_restarts, 0),
        ):
            if number < least:
                raise ValueError(f"{what} must be {least} or more, not {number}")


def elastic_role(
    name: str, launcher: Sequence[str], arguments: Sequence[str], elastic: Elastic, machine: Machine
) -> specs.Role:
    """A role of which every replica runs `python -m launcher OPTIONS -- arguments`, and all meet.

    Args:
        name: of the role; with several nodes it becomes part of a variable's name, so letters and digits.
        launcher: `lgd.launch`, or another module that takes its options, with options of its own.
        arguments: what stands behind the options.
        elastic: nodes, processes, restarts.
        machine: image, resources, environment.
    """
    size = elastic.size
    options = {
        "--nnodes": str(size.num_nodes),
        "--nproc-per-node": str(size.num_processes),
        "--rdzv-backend": "c10d",
        "--rdzv-conf": f"join_timeout={elastic.join_seconds},timeout={elastic.join_seconds}",
        "--max-restarts": str(elastic.max_restarts),
        **({"--log-dir": elastic.log_dir} if elastic.log_dir else {}),
    }
    words = [*launcher, *(f"{option}={value}" for option, value in options.items())]
    command = (
        f'-m {quote(*words)} --rdzv-endpoint="{_endpoint(elastic)}" '
        f'--rdzv-id="{specs.macros.app_id}" -- {quote(*arguments)}'
    )
    return _python_role(name, command, machine, size.num_nodes, size.num_processes, {"c10d": elastic.port})


def single_role(
    name: str, arguments: Sequence[str], machine: Machine, port_name: str, port: int
) -> specs.Role:
    """A role of one process, `python arguments`, that offers a port."""
    return _python_role(name, quote(*arguments), machine, 1, 1, {port_name: port})


def _python_role(
    name: str,
    command: str,
    machine: Machine,
    num_nodes: int,
    num_processes: int,
    ports: Mapping[str, int],
) -> specs.Role:
    environment = {**ENVIRONMENT, **machine.environment}
    # SLURM's --export splits at commas, and every layer has its own idea of quotes and dollars.
    plain = {key: value for key, value in environment.items() if re.fullmatch(r"[\w./:=+@^%-]*", value)}
    exports = [f"export {key}={quote(environment[key])}" for key in environment if key not in plain]
    role = specs.Role(
        name=name,
        image=machine.image,
        entrypoint="bash",
        args=["-c", "\n".join([*exports, _interpreter(), f'exec "$python" {command}'])],
        env=plain,
        num_replicas=num_nodes,
        max_retries=machine.max_retries,
        retry_policy=specs.RetryPolicy.APPLICATION,
        resource=machine.resource(num_processes),
        port_map={key: port for key, port in ports.items() if port},
        mounts=specs.parse_mounts(list(machine.mounts)),
    )
    _set_grace_period(role)
    return role


def quote(*words: str) -> str:
    """Quote words for bash so that not even what handles the line before bash finds a dollar to replace.

    TorchX replaces `$name`, `${name}` and `$$`, Kubernetes `$(NAME)` and `$$`; both leave `$'` alone, which
    opens bash's strings with escapes.
    """
    return shlex.join(words).replace("$", r"'$'\x24''")


def _interpreter() -> str:
    """The bash line that sets `$python`: this virtual environment's where the node has it, else python3."""
    if sys.prefix == sys.base_prefix:
        return "python=python3"
    return f'python={quote(sys.executable)}; [ -x "$python" ] || python=python3'


def _endpoint(elastic: Elastic) -> str:
    """HOST:PORT inside double quotes of bash."""
    if elastic.size.num_nodes == 1:
        return "localhost:0"
    # $$ and the macro become ${NAME:?...}, with the name of the scheduler's variable.
    host = f"$${{{specs.macros.rank0_env}:?is not set, so the first node is not known}}"
    if elastic.port:
        return f"{host}:{elastic.port}"
    # Nodes may be shared by jobs: a port from the job's id, the same on all of its nodes, in [20000, 30000).
    return f"{host}:$((20000 + $(printf %s '{specs.macros.app_id}' | cksum | cut -d ' ' -f 1) % 10000))"


def _set_grace_period(role: specs.Role) -> None:
    """Give pods time to save; TorchX 0.7.0 cannot, there it is Kubernetes' 30 s."""
    try:
        from torchx.specs.overlays import set_overlay
    except ImportError:
        return
    set_overlay(role, "kubernetes", "V1Pod", {"spec": {"terminationGracePeriodSeconds": GRACE_SECONDS}})


def mount_options(place: str, *, read_only: bool) -> tuple[list[str], str]:
    """What to mount for a folder, and its path inside.

    Args:
        place: "/host/folder", mounted at the same path; "claim:/path", a volume and where to mount it;
            or a relative path, which needs no mount.
        read_only: mount it so.

    Returns:
        Options for TorchX, and the path that the program sees.

    Raises:
        ValueError: a claim without an absolute path.
    """
    source, colon, path = place.partition(":")
    if not colon:
        path = source
        if not PurePosixPath(source).is_absolute():
            return [], path
    if not PurePosixPath(path).is_absolute():
        raise ValueError(f"{place!r} must be /FOLDER, CLAIM:/PATH or a relative path")
    kind = "bind" if source.startswith("/") else "volume"
    options = [f"type={kind}", f"src={source}", f"dst={path}"]
    return [*options, "readonly"] if read_only else options, path


def folder_settings(data: str, output: str) -> tuple[list[str], list[str]]:
    """Mounts of the data and of OUTPUT_DIR, and the settings that point there; either may be empty.

    Raises:
        ValueError: see `mount_options`.
    """
    mounts: list[str] = []
    settings: list[str] = []
    for key, place in (("DATASETS.ROOT", data), ("OUTPUT_DIR", output)):
        if place:
            options, path = mount_options(place, read_only=key == "DATASETS.ROOT")
            mounts += options
            settings += [key, path]
    return mounts, settings


def check_recipe(recipe: str, settings: Sequence[str], *, check: bool) -> None:
    """Read a recipe as the job will, so that what is wrong is said now and not after hours in a queue.

    Args:
        recipe: the file, or a recipe's name.
        settings: KEY VALUE pairs over it.
        check: False does nothing: the recipe may be in the image alone.

    Raises:
        ValueError: what is wrong with them.
    """
    if not check:
        return
    try:
        from lgd.config.load import load_config
    except ImportError:
        raise ValueError(
            "lgd is not installed here, so nothing can be checked; --check False goes without"
        ) from None
    try:
        load_config(recipe, settings)
    except ValueError as error:
        is_here = PurePosixPath(recipe).suffix == "" or Path(recipe).exists()
        hint = "" if is_here else "; where only the image has it, --check False queues it unread"
        raise ValueError(f"{error}{hint}") from None


def said_in_one_line(component: Component) -> Component:
    """Let a component that refuses its arguments say so in one line and end `torchx run` with 2."""

    @functools.wraps(component)
    def guarded(*arguments: Any, **options: Any) -> specs.AppDef:
        try:
            return component(*arguments, **options)
        except (ValueError, KeyError, OSError) as error:
            message = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
            sys.stderr.write(f"error: {on_one_line(' '.join(message.split()))}\n")
            raise SystemExit(2) from None

    return guarded  # type: ignore[return-value]


def network_environment(
    nccl_ib_disable: str, nccl_socket_ifname: str, nccl_tree_threshold: str, gloo_socket_ifname: str
) -> dict[str, str]:
    """The variables of NCCL and gloo that are given a value."""
    values = {
        "NCCL_IB_DISABLE": nccl_ib_disable,
        "NCCL_SOCKET_IFNAME": nccl_socket_ifname,
        "NCCL_TREE_THRESHOLD": nccl_tree_threshold,
        "GLOO_SOCKET_IFNAME": gloo_socket_ifname,
    }
    return {name: value for name, value in values.items() if value}
