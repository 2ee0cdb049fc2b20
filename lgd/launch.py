"""Start the workers of this machine: `python -m lgd.launch [torchrun's options] -- ARGUMENTS OF lgd.train`.

In place of torchrun, whose options it takes: it passes the workers' exit code on, signals to them, and does
not start again what was asked to leave.
"""

from __future__ import annotations

from lgd import exits

if __name__ == "__main__":
    exits.leave_on_ctrl_c()

import argparse
import os
import re
import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

from lgd.config.values import ConfigError
from lgd.ending import as_program, last_line
from lgd.ranks.interruption import Interruption
from lgd.run.log import start_logging

if TYPE_CHECKING:
    from lgd.ranks.rendezvous import Launch

JOIN_SECONDS = 300
"""How long machines wait for one another before they give up, unless told otherwise."""

DEFAULT_PORT = 29400
"""Where --rdzv-endpoint names a host alone, as torchrun has it."""

_NUMBERS = {
    "timeout", "join_timeout", "last_call_timeout", "close_timeout", "heartbeat_timeout", "read_timeout",
    "keep_alive_interval", "keep_alive_max_attempt",
}  # fmt: skip
"""The settings of --rdzv-conf that are numbers."""


def started_by_launcher() -> bool:
    """Whether torchrun (or SLURM, submitit, ...) has already placed this process in a group."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def launch_workers(
    arguments: Sequence[str],
    interruption: Interruption,
    *,
    num_workers: int,
    num_machines: int,
    machine_rank: int,
    dist_url: str,
) -> int:
    """Run `python -m lgd.train ARGUMENTS` in `num_workers` processes here; return their exit code.

    Args:
        arguments: command line of every worker.
        interruption: what asks this process to leave, and is passed on to the workers.
        num_workers: workers of this machine.
        num_machines: machines that take part, each starting its own workers.
        machine_rank: this machine's number, from 0.
        dist_url: "auto" on a single machine, else tcp://HOST:PORT of machine 0.

    Raises:
        ConfigError: a rank or an address that does not fit.
    """
    from lgd.ranks.elastic import run_workers
    from lgd.ranks.rendezvous import Launch

    launch = Launch(
        command=("-m", "lgd.train", *arguments),
        num_workers=num_workers,
        min_machines=num_machines,
        max_machines=num_machines,
        **_meeting_point(num_machines, machine_rank, dist_url),
    )
    return run_workers(launch, interruption)


def _meeting_point(num_machines: int, machine_rank: int, dist_url: str) -> dict[str, Any]:
    if num_machines == 1 and dist_url == "auto":
        return {"run_id": f"lgd-{os.getpid()}"}
    if not 0 <= machine_rank < num_machines:
        raise ConfigError(f"--machine-rank {machine_rank} is not in [0, {num_machines - 1}] (--num-machines)")
    try:
        address = urlparse(dist_url)
        is_place = address.scheme == "tcp" and bool(address.hostname) and bool(address.port)
    except ValueError:
        is_place = False
    if not is_place:
        raise ConfigError(f"--dist-url must be tcp://HOST:PORT of machine 0, not {dist_url!r}")
    return {
        "backend": "static",
        "endpoint": f"{address.hostname}:{address.port}",
        "settings": {"rank": machine_rank, "timeout": JOIN_SECONDS},
    }


def parse_arguments(argv: Sequence[str]) -> Launch:
    """Read the command line.

    Raises:
        ConfigError: options that do not fit together.
    """
    from lgd.ranks.rendezvous import Launch

    own, arguments = _split(argv)
    options = _make_parser().parse_args(own)
    least, most = _machines(options.nnodes)
    if not 0 <= options.node_rank < most:
        raise ConfigError(f"--node-rank {options.node_rank} is not in [0, {most - 1}] (--nnodes {most})")
    if options.max_restarts < 0:
        raise ConfigError(f"--max-restarts must be 0 or more, not {options.max_restarts}")
    return Launch(
        command=("-m", options.module, *arguments),
        num_workers=_workers(options.nproc_per_node),
        min_machines=least,
        max_machines=most,
        max_restarts=options.max_restarts,
        backend=options.rdzv_backend,
        endpoint=_endpoint(options.rdzv_endpoint, options.nnodes) if most > 1 else Launch.endpoint,
        run_id=options.rdzv_id or ("lgd" if most > 1 else f"lgd-{os.getpid()}"),
        settings=_settings(options.rdzv_conf, options.node_rank, options.rdzv_backend),
        local_address=options.local_addr,
        log_folder=options.log_dir,
    )


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lgd.launch",
        usage="%(prog)s [options] -- ARGUMENTS...",
        description="Start the workers of this machine. The options are torchrun's.",
        epilog=f"Exit codes: {exits.DONE} done, {exits.USER_ERROR} what you can mend, "
        f"{exits.RUN_AGAIN} saved, run me again; others are faults.",
    )
    parser.add_argument("--nnodes", default="1", metavar="N|MIN:MAX", help="machines that take part")
    parser.add_argument("--nproc-per-node", default="1", metavar="N|gpu", help="workers of this machine")
    parser.add_argument("--rdzv-backend", default="c10d", choices=["c10d", "static"])
    parser.add_argument(
        "--rdzv-endpoint", default="", metavar="HOST:PORT", help="where several machines meet"
    )
    parser.add_argument("--rdzv-id", default="", metavar="ID", help="the same on all machines of a run")
    parser.add_argument("--rdzv-conf", default="", metavar="KEY=VALUE,...", help="time-outs and the like")
    parser.add_argument(
        "--max-restarts", type=int, default=0, metavar="K", help="restarts after a lost worker"
    )
    parser.add_argument("--node-rank", type=int, default=0, metavar="R", help="for --rdzv-backend static")
    parser.add_argument("--local-addr", metavar="HOST", help="how the others reach this machine")
    parser.add_argument("--log-dir", metavar="DIR", help="keep every worker's output there too")
    parser.add_argument("-m", "--module", default="lgd.train", help="what the workers run")
    return parser


def _split(argv: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """Split at the first `--`: this program's options, and the workers' arguments."""
    place = list(argv).index("--") if "--" in argv else len(argv)
    return argv[:place], argv[place + 1 :]


def _machines(text: str) -> tuple[int, int]:
    least, _, most = text.partition(":")
    result = _number(least), _number(most or least)
    if not 1 <= result[0] <= result[1]:
        raise ConfigError(f"--nnodes must be a number or MIN:MAX, not {text!r}")
    return result


def _endpoint(text: str, machines: str) -> str:
    if not text:
        raise ConfigError(f"--nnodes {machines} needs --rdzv-endpoint HOST:PORT, the same on all machines")
    host, _, port = text.rpartition(":") if ":" in text else (text, "", str(DEFAULT_PORT))
    if not host or not 0 < _number(port) < 2**16:
        raise ConfigError(f"--rdzv-endpoint must be HOST:PORT, not {text!r}")
    return f"{host.strip('[]')}:{port}"


def _workers(text: str) -> int:
    if text == "gpu":
        import torch

        count = torch.cuda.device_count()
        if count == 0:
            raise ConfigError("--nproc-per-node gpu: torch sees no GPU on this machine")
        return count
    if _number(text) < 1:
        raise ConfigError(f"--nproc-per-node must be a number or gpu, not {text!r}")
    return _number(text)


def _number(text: str) -> int:
    """A whole number of a sensible size; -1 for any other text."""
    return int(text) if re.fullmatch(r"[0-9]{1,9}", text) else -1


def _settings(text: str, node_rank: int, backend: str) -> dict[str, Any]:
    settings: dict[str, Any] = {"timeout": JOIN_SECONDS, "join_timeout": JOIN_SECONDS}
    for pair in filter(None, text.split(",")):
        key, equals, value = (word.strip() for word in pair.partition("="))
        if not equals:
            raise ConfigError(f"--rdzv-conf must be KEY=VALUE,..., not {text!r}")
        if key in _NUMBERS and _number(value) < 1:
            raise ConfigError(f"--rdzv-conf {key} must be a whole number above 0, not {value!r}")
        if key == "is_host" and value.lower() not in ("0", "1", "false", "true"):
            raise ConfigError(f"--rdzv-conf is_host must be true or false, not {value!r}")
        settings[key] = value
    if backend == "static":
        settings["rank"] = node_rank
        settings["timeout"] = int(settings["timeout"])
    return settings


def _import_torch_quietly() -> None:
    """Import torch without its C++ messages in this process; the workers keep theirs.

    Where a machine is lost torch would write a stack trace every second, and hide what this launcher says.
    """
    if "TORCH_CPP_LOG_LEVEL" not in os.environ:
        os.environ["TORCH_CPP_LOG_LEVEL"] = "FATAL"
        import torch  # noqa: F401

        del os.environ["TORCH_CPP_LOG_LEVEL"]


def main(argv: Sequence[str] | None = None, *, is_program: bool = False) -> int:
    """Run the command line; returns the workers' exit code.

    Args:
        argv: the arguments; None takes the program's.
        is_program: the process ends with the code (see `lgd.ending`), which no later signal may change.
    """
    if is_program:
        as_program(partial(_main, argv, is_program=True))
    return _main(argv, is_program=False)


def _main(argv: Sequence[str] | None, *, is_program: bool) -> int:
    with Interruption(until_exit=is_program) as interruption:
        start_logging(0)
        try:
            _import_torch_quietly()
            from lgd.ranks.elastic import run_workers

            if is_program:
                interruption.tidy_up_on_ctrl_c()
            return run_workers(parse_arguments(sys.argv[1:] if argv is None else argv), interruption)
        except ConfigError as error:
            sys.stderr.write(f"error: {last_line(str(error))}\n")
            return exits.USER_ERROR
        except KeyboardInterrupt:
            return exits.CTRL_C


if __name__ == "__main__":
    main(is_program=True)
