"""Queue trainings under SLURM with submitit: `python -m jobs.submit --config-file F --time T [KEY VALUE]`.

Each task of the job is one rank with one GPU. A job that runs out of time or is pre-empted saves, is queued
again and goes on from its newest checkpoint.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.console import guarded
from jobs.scheduler import explaining_submission, require_programs
from jobs.sweep import runs_of_sweep, split_list
from jobs.text import on_one_line, require_one_line
from jobs.timelimit import describe_minutes, parse_minutes
from jobs.trainer import ENVIRONMENT, FAILED, Trainer
from lgd.files import typed_path

if TYPE_CHECKING:
    from submitit import Executor

WEEK = 7 * 24 * 60

SCHEDULING = ("partition", "account", "qos", "constraint", "nodelist", "exclude", "dependency", "comment")
"""Options that are sbatch's own."""

GPUS_PER_NODE = 8
"""Of a node under SLURM, unless told otherwise."""

PASSED_ON = re.compile(r"(NCCL|GLOO|TORCH|TP|UCX|FI)_\w+|OMP_NUM_THREADS")
"""Variables of the submitting shell that every task gets, however the site treats the environment."""

RESTART = """\
# A task that SIGUSR2 (140) or SIGTERM (143) ended while it was still starting had nothing to save: queue it
# again, unless somebody cancelled the job, or the signal came because another task has failed.
code=$?
if {{ [ "$code" -eq 140 ] || [ "$code" -eq 143 ]; }} && [ ! -e {mark} ] &&
    [ "${{SLURM_RESTART_COUNT:-0}}" -lt {limit} ] &&
    [ "$(squeue --noheader --jobs "$SLURM_JOB_ID" --format %T)" != COMPLETING ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; `recipes` and `settings` are told apart here."""
    parser = argparse.ArgumentParser(
        prog="python -m jobs.submit",
        description="Queue a training, or a table of them, under SLURM.",
        epilog="Jobs always go on from the newest checkpoint of OUTPUT_DIR.",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--config-file", metavar="RECIPE", help="a YAML file, or a name of lgd recipes")
    what.add_argument(
        "--array",
        nargs="+",
        metavar="FILE",
        help="recipes, or folders of them: a job each, into OUTPUT_DIR/NAME (by default outputs/sweep/NAME)",
    )
    parser.add_argument(
        "--seeds", default="", metavar="S,S,...", help="train every recipe with each of these"
    )
    parser.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS and stop")
    parser.add_argument("--cluster", choices=["slurm", "local", "debug"], default="slurm",
                        help="local: processes of this machine; debug: in this process")  # fmt: skip
    parser.add_argument(
        "--folder",
        type=typed_path,
        default=Path("job_logs"),
        metavar="DIR",
        help="logs, on a shared file system",
    )
    parser.add_argument("--name", default="", help="of the job; the recipe's unless given")
    parser.add_argument("--dry-run", action="store_true", help="print the batch script and queue nothing")
    _add_resources(parser)
    _add_scheduling(parser)
    parser.add_argument("settings", nargs="*", metavar="KEY VALUE", help="settings over the recipe's")
    options = parser.parse_intermixed_args(argv)
    _check(options)
    options.recipes = [options.config_file] if options.config_file else []
    for place, word in enumerate(options.array or []):
        if word.isupper() and not Path(word).is_dir():
            options.settings = options.array[place:] + options.settings
            break
        options.recipes += _recipes_of(word)
    return options


def _check(options: argparse.Namespace) -> None:
    """Refuse what would break the batch script's lines, and fill in the GPUs."""
    for name in (*SCHEDULING, "name", "folder", "mem", "time", "seeds"):
        value = getattr(options, name)
        require_one_line(f"--{name}", None if value is None else str(value))
    for name in ("sbatch", "setup", "env"):
        for word in getattr(options, name):
            require_one_line(f"--{name}", word)
    least = {"nodes": 1, "cpus_per_task": 1, "max_running": 1, "tasks_per_node": 1, "gpus_per_node": 0,
             "signal_seconds": 0, "max_requeues": 0}  # fmt: skip
    for name, number in least.items():
        value = getattr(options, name)
        if value is not None and value < number:
            raise ValueError(f"--{name.replace('_', '-')} must be {number} or more, not {value}")
    there = _visible_gpus() if options.cluster == "local" else range(GPUS_PER_NODE)
    if options.gpus_per_node is None:
        options.gpus_per_node = 0 if options.tasks_per_node and not there else len(there)
    elif options.cluster == "local" and options.gpus_per_node > len(there):
        raise ValueError(f"--gpus-per-node {options.gpus_per_node}: torch sees {len(there)} on this machine")


def _visible_gpus() -> Sequence[int]:
    """Numbers of this machine's GPUs that processes of this shell may use."""
    import torch

    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return [int(name) for name in named[:count]] if all(map(str.isdecimal, named)) else range(count)


def _add_resources(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what each job gets")
    group.add_argument("--nodes", type=int, default=1, metavar="N")
    group.add_argument(
        "--gpus-per-node", type=int, metavar="N",
        help=f"and one task for each; {GPUS_PER_NODE} under SLURM, here those that are there",
    )  # fmt: skip
    group.add_argument("--tasks-per-node", type=int, metavar="N", help="only where there is no GPU")
    group.add_argument("--cpus-per-task", type=int, default=6, metavar="N", help="for the data workers too")
    group.add_argument("--mem", metavar="SIZE", help="of a node, such as 480G; 0 for all of it")
    group.add_argument(
        "--time", metavar="T", help="M, M:S, H:M:S, D-H, D-H:M or D-H:M:S: 24:00 is 24 minutes"
    )
    group.add_argument("--env", action="append", default=[], metavar="NAME=VALUE",
                       help="for the tasks; NCCL_*, GLOO_*, TORCH_* of this shell are passed on")  # fmt: skip
    group.add_argument("--setup", action="append", default=[], metavar="LINE",
                       help="a line of bash before the tasks start, such as 'module load cuda'")  # fmt: skip


def _add_scheduling(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how it is scheduled")
    for name in SCHEDULING:
        group.add_argument(f"--{name}", metavar=name.upper(), help=f"as sbatch's --{name}")
    group.add_argument("--sbatch", action="append", default=[], metavar="NAME[=VALUE]",
                       help="any other option of sbatch, such as reservation=R or exclusive")  # fmt: skip
    group.add_argument(
        "--max-running", type=int, default=256, metavar="N", help="jobs of the array at a time"
    )
    group.add_argument("--signal-seconds", type=int, default=300, metavar="S",
                       help="before the limit, to finish a step or an evaluation and to save")  # fmt: skip
    group.add_argument("--max-requeues", type=int, default=100, metavar="N", help="after running out of time")


def _recipes_of(place: str) -> list[str]:
    from lgd.config.recipes import find_folder

    folder = find_folder(place)
    if folder is None:
        return [place]
    found = sorted(str(path) for path in folder.glob("*.yaml"))
    if not found:
        raise ValueError(f"--array {place}: no *.yaml in this folder")
    return found


def plan(options: argparse.Namespace) -> list[tuple[str, Trainer]]:
    """Name and callable of every job.

    Raises:
        ValueError: recipes, seeds or settings that do not fit; each recipe is read as the job will read it.
    """
    from lgd.config.load import load_config

    settings = list(options.settings)
    if options.array or options.seeds:
        root = dict(zip(settings[::2], settings[1::2], strict=False)).get("OUTPUT_DIR", "outputs/sweep")
        # The last of a key wins: no setting may give all runs one seed or one folder.
        table = [
            (name, recipe, [*settings, *own, "OUTPUT_DIR", f"{root}/{name}"])
            for name, (_, recipe, *own) in runs_of_sweep(options.recipes, split_list(options.seeds))
        ]
    else:
        table = [(Path(recipe).stem, recipe, settings) for recipe in options.recipes]
    flag = "--eval-only" if options.eval_only else "--resume"
    jobs = []
    for name, recipe, settings in table:
        load_config(recipe, settings)  # what is wrong is said now, not when the job has waited for a day
        jobs.append((name, Trainer(("--config-file", recipe, flag, *settings))))
    return jobs


def batch_parameters(options: argparse.Namespace, name: str) -> dict[str, Any]:
    """What submitit writes into the batch script, for any cluster that runs SLURM.

    Raises:
        ValueError: no or a wrong time limit, or a malformed variable or option.
    """
    if not options.time:
        raise ValueError("--time is missing: how long may a job run? For example 24:00:00, a day")
    minutes = parse_minutes(options.time)
    own = {key: getattr(options, key) for key in (*SCHEDULING, "mem")}
    return {
        **{key: value for key, value in own.items() if value is not None},
        "job_name": name,
        "wckey": None,
        "nodes": options.nodes,
        "ntasks_per_node": _tasks_per_node(options),
        **({"gpus_per_node": options.gpus_per_node} if options.gpus_per_node else {}),
        "cpus_per_task": options.cpus_per_task,
        "time": minutes,
        "signal_delay_s": min(options.signal_seconds, minutes * 30),
        "array_parallelism": options.max_running,
        "stderr_to_stdout": True,
        "setup": [*options.setup, *_exports(options.env), f"rm -f {_mark(options)}"],
        "teardown": RESTART.format(limit=options.max_requeues, mark=_mark(options)).splitlines(),
        # srun takes none of these three from sbatch; a rank that fails must not leave the others waiting.
        "srun_args": [
            "--export=ALL", f"--cpus-per-task={options.cpus_per_task}", "--open-mode=append",
            "--kill-on-bad-exit=1",
        ],
        "additional_parameters": {"requeue": True, **_more_options(options.sbatch)},
    }  # fmt: skip


def _mark(options: argparse.Namespace) -> str:
    """`jobs.trainer.failure_mark` in words of bash."""
    folder = options.folder.absolute()
    return f'{shlex.quote(str(folder))}/"$SLURM_JOB_ID"{FAILED}'


def _tasks_per_node(options: argparse.Namespace) -> int:
    if options.tasks_per_node and options.gpus_per_node not in (0, options.tasks_per_node):
        raise ValueError(
            f"--tasks-per-node {options.tasks_per_node}: every task has one GPU, and --gpus-per-node is "
            f"{options.gpus_per_node}; leave it out, or set --gpus-per-node 0 to train without GPUs"
        )
    return int(options.tasks_per_node or options.gpus_per_node or 1)


def _exports(pairs: Sequence[str]) -> list[str]:
    variables = {
        **ENVIRONMENT,
        **{key: value for key, value in os.environ.items() if PASSED_ON.fullmatch(key)},
    }
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_]\w*", key):
            raise ValueError(f"--env {pair!r} must be NAME=VALUE")
        variables[key] = value
    return [f"export {key}={shlex.quote(value)}" for key, value in sorted(variables.items())]


def _more_options(words: Sequence[str]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.removeprefix("--").partition("=")
        if not re.fullmatch(r"[a-z][a-z-]*", key):
            raise ValueError(f"--sbatch {word!r} must be NAME or NAME=VALUE, such as reservation=R")
        options[key] = value if equals else True
    return options


def make_executor(options: argparse.Namespace, name: str) -> Executor:
    """The submitit executor that the options ask for."""
    _require_submitit()
    import submitit
    from submitit.local.debug import DebugExecutor

    if options.cluster == "debug":
        return DebugExecutor(options.folder)
    if options.cluster == "local":
        local = submitit.LocalExecutor(options.folder, max_num_timeout=options.max_requeues)
        minutes = parse_minutes(options.time) if options.time else WEEK
        local.update_parameters(
            nodes=options.nodes,
            tasks_per_node=_tasks_per_node(options),
            gpus_per_node=options.gpus_per_node,
            visible_gpus=tuple(_visible_gpus()),
            timeout_min=minutes,
            signal_delay_s=min(options.signal_seconds, minutes * 30),
            stderr_to_stdout=True,
        )
        return local
    # scontrol is what a job queues itself again with.
    require_programs(
        ("srun", "sbatch", "scontrol"),
        "submit from a login node of the cluster, look at the script with --dry-run, or train here with "
        "--cluster local",
    )
    executor = submitit.SlurmExecutor(options.folder, max_num_timeout=options.max_requeues)
    executor.update_parameters(**batch_parameters(options, name))
    return executor


def _require_submitit() -> None:
    if importlib.util.find_spec("submitit") is None:
        raise ValueError("submitit is not installed: pip install lgd[jobs]")


def batch_text(options: argparse.Namespace, jobs: Sequence[tuple[str, Trainer]], name: str) -> str:
    """The batch script, and behind it what each job of it runs; needs no SLURM."""
    _require_submitit()
    from submitit.slurm.slurm import _make_sbatch_string

    folder = options.folder.absolute()
    text = _make_sbatch_string(
        command=f"{shlex.quote(sys.executable)} -u -m submitit.core._submit {shlex.quote(str(folder))}",
        folder=folder,
        map_count=len(jobs) if len(jobs) > 1 else None,
        **batch_parameters(options, name),
    )
    lines = [
        on_one_line(f"# {i}: python -m lgd.train {shlex.join(job.arguments)}")
        for i, (_, job) in enumerate(jobs)
    ]
    return "\n".join([text, "", "# What the tasks run:", *lines, ""])


def submit(options: argparse.Namespace) -> int:
    """Queue what the options say, or print it; returns the exit code."""
    jobs = plan(options)
    name = options.name or (jobs[0][0] if len(jobs) == 1 else "sweep")
    require_one_line("the job's name, which is the recipe's,", name)
    if options.dry_run:
        sys.stdout.write(batch_text(options, jobs, name))
        return 0
    executor = make_executor(options, name)
    with explaining_submission(), executor.batch():
        queued = [executor.submit(trainer) for _, trainer in jobs]
    for job, (run, _) in zip(queued, jobs, strict=True):
        sys.stdout.write(f"{run}: job {job.job_id}, log {job.paths.stdout}\n")
    if options.cluster == "debug":
        for job in queued:
            job.results()
    elif options.time:
        sys.stdout.write(f"time limit {describe_minutes(parse_minutes(options.time))}, then queued again\n")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, or 2 with one line for what the user can mend."""
    return guarded(lambda: submit(parse_arguments(argv)))


if __name__ == "__main__":
    sys.exit(main())
