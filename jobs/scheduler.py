"""What is asked of a scheduler's own programs."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from jobs.text import on_one_line

_SECONDS = 120
"""For an answer: SLURM's programs give up by themselves after some of their MessageTimeout."""

_LONGEST = 400


class SchedulerError(ValueError):
    """A scheduler's program is not there, or refuses; one line."""


def require_programs(names: Sequence[str], way_out: str) -> None:
    """Make sure that programs are on the PATH.

    Raises:
        SchedulerError: the first that is not.
    """
    for name in names:
        if shutil.which(name) is None:
            raise SchedulerError(f"there is no {name} on this machine: {way_out}")


def ask(*command: str) -> str:
    """Run a program of a scheduler and return what it prints.

    Raises:
        SchedulerError: it is not there, fails, or does not answer.
    """
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=_SECONDS
        )
    except OSError as error:
        raise SchedulerError(f"cannot run {command[0]}: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise SchedulerError(f"{command[0]} did not answer in {_SECONDS} s") from None
    if done.returncode != 0:
        said = summarise((done.stderr or done.stdout).decode(errors="replace"))
        raise SchedulerError(f"{command[0]} failed: {said or f'exit code {done.returncode}'}")
    return done.stdout.decode(errors="replace")


def summarise(text: str) -> str:
    """What a program complained of, on one line: "sbatch: error: A", "sbatch: error: B" as "A; B"."""
    lines = [line.strip() for line in text.splitlines()]
    words = [line.split("error: ", 1)[-1].split("fatal: ", 1)[-1] for line in lines if line]
    return on_one_line("; ".join(dict.fromkeys(words)))[:_LONGEST]


@contextmanager
def explaining_submission() -> Iterator[None]:
    """Turn what submitit raises where a job cannot be queued into one line.

    Raises:
        SchedulerError: with what sbatch said.
    """
    import contextlib
    import io

    from submitit.core.utils import FailedJobError, FailedSubmissionError

    try:
        with contextlib.redirect_stderr(io.StringIO()):  # submitit prints sbatch's complaint, and raises it
            yield
    except (FailedJobError, FailedSubmissionError, subprocess.SubprocessError) as error:
        raise SchedulerError(f"sbatch refuses the job: {summarise(str(error))}") from None
