"""Which process a run is, and which job of a scheduler, so that it can be found again."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

JOB = "LGD_JOB"
"""Variable by which whatever starts a run may say itself what it is: "KIND ID"."""


def scheduler_job(environ: Mapping[str, str] = os.environ) -> str:
    """The scheduler's job that this process belongs to: "slurm 4711", "torchx HANDLE"; "" without one."""
    if environ.get(JOB):
        return environ[JOB]
    if "SLURM_JOB_ID" in environ:
        task = environ.get("SLURM_ARRAY_TASK_ID", "")
        number = environ.get("SLURM_HET_JOB_ID") or environ["SLURM_JOB_ID"]
        return f"slurm {environ['SLURM_ARRAY_JOB_ID']}_{task}" if task else f"slurm {number}"
    for variable, kind in (("TORCHX_JOB_ID", "torchx"), ("SUBMITIT_LOCAL_JOB_ID", "local")):
        if environ.get(variable):
            return f"{kind} {environ[variable]}"
    return ""


def process_start(process_id: int) -> str:
    """When a process of this machine began, in ticks since the boot; "" if none of the number runs.

    With the number it tells a process from a later one that was given the same number.
    """
    try:
        # The third field and the 22nd; the second, the command in parentheses, may hold spaces.
        fields = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        return ""
