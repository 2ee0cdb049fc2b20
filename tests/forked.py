"""Runs of `lgd.train`, and ranks of a function, in processes that have all imports behind them: of the ten
seconds of a run two are left."""

import contextlib
import importlib
import multiprocessing
import os
import runpy
import sys
import time
from pathlib import Path

from torch import multiprocessing as torch_multiprocessing

from lgd.ranks.store import find_free_port
from tests.training import REPOSITORY

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.forked_preload"])


class ForkedProgram:
    """A module's `main` in a process of its own whose output goes to a file."""

    def __init__(self, module, argv, *, log, environment=None, before=None, as_module=False):
        """Start; `before` is called in the process first, to change what the program will find.

        `as_module` runs all of the module, as `python -m` does, in the place of its `main`.
        """
        self.log = Path(log)
        arguments = (module, argv, str(log), environment or {}, before, as_module)
        self.process = CONTEXT.Process(target=_call_main, args=arguments)
        self.process.start()

    def signal(self, number):
        with contextlib.suppress(ProcessLookupError):  # it may end at any moment
            os.kill(self.process.pid, number)

    def wait_a_while(self, seconds):
        """Wait so long, or until the process has ended."""
        self.process.join(seconds)

    def wait(self, seconds=200):
        """Return the exit code."""
        self.process.join(seconds)
        assert self.process.exitcode is not None, f"still running:\n{self.log.read_text()}"
        return self.process.exitcode

    def wait_for(self, path, text, seconds=200):
        """Wait until a file holds `text` or the process has ended."""
        deadline = time.monotonic() + seconds
        while self.process.is_alive() and time.monotonic() < deadline:
            if path.exists() and text in path.read_text():
                return
            time.sleep(0.01)


class Forked(ForkedProgram):
    """One rank of a training run."""

    def __init__(self, settings, *flags, **options):
        """Start it; `options` as for `ForkedProgram`."""
        argv = ["--config-file", str(REPOSITORY / "configs/demo.yaml"), *flags, *settings]
        super().__init__("lgd.train", argv, **options)


def start_ranks(settings, *flags, folder, number=2, before=None, **settings_of_rank):
    """Start the ranks of a run; `rank1=[...]` are further settings of rank 1 alone."""
    port = find_free_port()
    return [
        Forked(
            [*settings, *settings_of_rank.get(f"rank{rank}", [])],
            *flags,
            log=folder / f"rank{rank}.log",
            before=before,
            environment={
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(number),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            },
        )
        for rank in range(number)
    ]


def call_ranks(function, *arguments, number=2):
    """Call `function(rank, *arguments)` in so many processes; raises what one of them raises."""
    torch_multiprocessing.start_processes(function, arguments, number, start_method="forkserver")


def _call_main(module, argv, log, environment, before, as_module):
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update(environment, OMP_NUM_THREADS="1", PYTHONPATH=str(REPOSITORY))
    multiprocessing.set_start_method("fork", force=True)  # of the data workers, as in a program of its own
    import torch

    torch.set_num_threads(1)
    if before:
        before()
    if as_module:
        sys.argv[1:] = argv
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        sys.exit()
    sys.exit(importlib.import_module(module).main(argv, is_program=True))
