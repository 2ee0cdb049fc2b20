"""What a submitit job runs: `lgd.train` as one rank, saved and queued again when its time is up.

Who handles which signal: until `lgd.train` takes over, submitit does (SIGUSR2 queues the job again, SIGTERM
is noted). From then on `lgd.train` does: at either signal all ranks save at the same step and leave with
`lgd.exits.RUN_AGAIN`, whereupon rank 0 does through submitit's own handler what SIGUSR2 would have done.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

ENVIRONMENT = {
    # Without it a replaced node takes all others down with it.
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
}


FAILED = "_failed"
"""Behind a job's id: the file in the logs' folder that a rank leaves which has failed by itself."""


@dataclass(frozen=True)
class Trainer:
    """A job that submitit can interrupt and start again.

    It holds the command line and nothing else: every start looks for the newest checkpoint itself.

    Attributes:
        arguments: command line of `lgd.train`.
    """

    arguments: tuple[str, ...]

    def __call__(self) -> int:
        """Run as the rank that the scheduler's variables name; returns 0.

        Raises:
            SystemExit: with any other exit code of `lgd.train`, or because the job is queued again.
        """
        requeue = signal.getsignal(signal.SIGUSR2)  # submitit's handler, or the default in its debug mode
        join_group()
        from lgd import exits, train

        code = train.main(list(self.arguments))
        if code == exits.RUN_AGAIN and callable(requeue):
            queue_again(requeue)
            raise SystemExit(exits.DONE)  # a failed rank would have the others killed
        if code != exits.DONE:
            note_failure()
            raise SystemExit(code)
        return code

    def checkpoint(self) -> DelayedSubmission | None:
        """What submitit queues when the job is interrupted: the same again, unless the user cancelled it."""
        from submitit.helpers import DelayedSubmission

        return None if is_ending() else DelayedSubmission(self)


def note_failure() -> None:
    """Leave a file behind: the batch script must not take what ends the other ranks for a pre-emption.

    srun ends them by SIGTERM, and tells the highest exit code, which is then that of the signal.
    """
    from submitit.core.job_environment import JobEnvironment

    job = os.environ.get("SLURM_JOB_ID")
    if job is not None:
        with contextlib.suppress(OSError):
            (JobEnvironment().paths.folder / f"{job}{FAILED}").touch()


def queue_again(requeue: Callable[[int, None], None]) -> None:
    """Do what submitit does at SIGUSR2: on rank 0 it queues the job again and does not return.

    Raises:
        SystemExit: likewise; or with the code of what is in the way, which is said in one line.
    """
    from submitit.core.utils import UncompletedJobError

    from lgd import exits

    try:
        requeue(signal.SIGUSR2, None)
    except UncompletedJobError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(exits.RUN_AGAIN) from None
    except (OSError, subprocess.SubprocessError) as error:
        sys.stderr.write(
            f"error: saved, but the job could not be queued again ({error}): submit it again, it goes on\n"
        )
        raise SystemExit(exits.USER_ERROR) from None


def join_group() -> None:
    """Set what torch.distributed needs to know (RANK, MASTER_ADDR, ...) from the scheduler's variables."""
    from submitit.core.job_environment import JobEnvironment
    from submitit.helpers import TorchDistributedEnvironment

    # The job's own id, so that jobs that share a node do not meet. On one node any port will do: rank 0 tells
    # the others (lgd.ranks.store).
    job = JobEnvironment()
    number = int(re.sub(r"\D", "", job.raw_job_id))
    os.environ["MASTER_PORT"] = "0" if job.num_nodes == 1 else str(20000 + number % 10000)
    os.environ["LGD_MEETING"] = f"job-{number}"
    # Every rank sees all GPUs of its node and takes the one of its local rank.
    TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
    for name, value in {**ENVIRONMENT, "OMP_NUM_THREADS": os.environ.get("SLURM_CPUS_PER_TASK", "1")}.items():
        os.environ.setdefault(name, value)


def is_ending() -> bool:
    """Whether SLURM is already taking this job down: what it requeues it requeues itself.

    Without this question a job that the user cancels would save, leave, and be queued again.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return False
    command = ["squeue", "--noheader", "--jobs", job, "--format", "%T"]
    try:
        state = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return False  # nobody to ask
    return state.returncode == 0 and state.stdout.strip() in ("COMPLETING", "CANCELLED")
