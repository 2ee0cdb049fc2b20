"""What a submitit job runs: `lgd.train` as one rank, saved and queued again when its time is up.

Who handles which signal: until `lgd.train` takes over, submitit does (SIGUSR2 queues the job again, SIGTERM
is noted). From then on `lgd.train` does: at either signal all ranks save at the same step and leave with
`lgd.exits.RUN_AGAIN`, whereupon rank 0 does through submitit's own handler what SIGUSR2 would have done.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

ENVIRONMENT = {
    # Without it a replaced node takes all others down with it.
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
}


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
            requeue(signal.SIGUSR2, None)  # does not return on rank 0
            raise SystemExit(exits.DONE)  # a failed rank would have the others killed
        if code != exits.DONE:
            raise SystemExit(code)
        return code

    def checkpoint(self) -> DelayedSubmission | None:
        """What submitit queues when the job is interrupted: the same again, unless the user cancelled it."""
        from submitit.helpers import DelayedSubmission

        return None if is_ending() else DelayedSubmission(self)


def join_group() -> None:
    """Set what torch.distributed needs to know (RANK, MASTER_ADDR, ...) from the scheduler's variables."""
    from submitit.core.job_environment import JobEnvironment
    from submitit.helpers import TorchDistributedEnvironment

    # The job's own id, so that jobs that share a node do not meet.
    job = int(re.sub(r"\D", "", JobEnvironment().raw_job_id))
    os.environ["MASTER_PORT"] = str(20000 + job % 10000)
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
    state = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, timeout=60)
    return state.returncode == 0 and state.stdout.strip() in ("COMPLETING", "CANCELLED")
