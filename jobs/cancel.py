"""End a run: `python -m jobs.cancel OUTPUT_DIR`. It saves, leaves and does not come back.

The scheduler that started it is asked to; without one its process is, if it is on this host.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from jobs.console import guarded
from jobs.records import Start, find_start
from jobs.scheduler import SchedulerError, ask
from lgd.files import typed_path


def cancel(folder: Path) -> str:
    """End the run in an OUTPUT_DIR; returns what was done.

    Raises:
        ValueError: there is no run, it is over, or nobody who could end it is to be reached from here.
    """
    start = find_start(folder)
    if start.kind == "slurm" and start.job_id:
        return _cancel_slurm(folder, start.job_id)
    if start.kind == "kubernetes" and start.job_id:
        ask("kubectl", "delete", start.job_id, "--wait=false")
        return f"asked Kubernetes to delete {start.job_id}"
    if start.kind == "torchx" and start.job_id and not start.job_id.startswith("local"):
        return _cancel_torchx(start.job_id)
    return _cancel_process(folder, start)


def _cancel_slurm(folder: Path, job: str) -> str:
    try:
        state = ask("squeue", "--noheader", "--jobs", job, "--format", "%T").strip()
    except SchedulerError as error:
        if "Invalid job id" not in str(error):
            raise
        state = ""
    if state in ("", "COMPLETING", "COMPLETED", "CANCELLED", "FAILED", "TIMEOUT"):
        raise ValueError(f"{folder}: its job {job} is not in SLURM's queue any more")
    ask("scancel", job)
    return f"asked SLURM to cancel job {job}"


def _cancel_torchx(handle: str) -> str:
    try:
        from torchx.runner import get_runner
    except ImportError:
        raise SchedulerError("torchx is not installed here: pip install lgd[jobs]") from None
    try:
        with warnings.catch_warnings(action="ignore"), get_runner() as runner:
            runner.cancel(handle)
    except Exception as error:  # each of its schedulers raises what its client does
        raise SchedulerError(f"torchx cannot cancel {handle}: {error}") from None
    return f"asked TorchX to cancel {handle}"


def _cancel_process(folder: Path, start: Start) -> str:
    who = f"process {start.process_id} on {start.host or 'an unknown host'}"
    if not start.is_here:
        raise ValueError(f"{folder}: no scheduler is known; it is {who}: type this line there")
    if not (start.began and start.runs() and _writes_to(start.process_id, folder / "log.txt")):
        raise ValueError(f"{folder}: {who} is not there any more")
    if start.kind == "local" and start.job_id and _parent_of(start.process_id) == int(start.job_id):
        os.kill(int(start.job_id), signal.SIGKILL)  # submitit's controller would start the ranks again
    os.kill(start.process_id, signal.SIGTERM)
    return f"asked {who} to leave"


def _writes_to(process_id: int, log: Path) -> bool:
    """Whether a process has this very file open: no other is ever sent a signal."""
    try:
        wanted = log.stat()
        handles = list(Path(f"/proc/{process_id}/fd").iterdir())
    except OSError:
        return False
    for handle in handles:
        try:
            found = handle.stat()
        except OSError:
            continue
        if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino):
            return True
    return False


def _parent_of(process_id: int) -> int:
    text = Path(f"/proc/{process_id}/stat").read_text()
    return int(text.rpartition(")")[2].split()[1])


def show(folder: Path) -> int:
    """Cancel and say what was done; returns the exit code."""
    done = cancel(folder)
    sys.stdout.write(f"{done}: it saves and leaves, which `python -m jobs.status {folder}` shows\n")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, or 2 with one line where nothing was ended."""
    parser = argparse.ArgumentParser(prog="python -m jobs.cancel", description="End a run; it saves.")
    parser.add_argument("folder", type=typed_path, metavar="OUTPUT_DIR", help="of the run")
    arguments = parser.parse_args(argv)
    return guarded(lambda: show(arguments.folder))


if __name__ == "__main__":
    sys.exit(main())
