"""What a run stands on, passed whole."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lgd.ranks.channel import Channel
from lgd.ranks.cores import CoresWatch
from lgd.ranks.leaving import Leaving
from lgd.ranks.watch import Watch
from lgd.run.lock import Hold
from lgd.run.output import History, OutputFolder
from lgd.run.refused import Refused
from lgd.run.resume import Starts


@dataclass(frozen=True)
class Task:
    """What a run shall do.

    Attributes:
        cores: since the program began: what other work there is.
        resume: go on from the newest checkpoint of OUTPUT_DIR, if there is one.
        eval_only: evaluate MODEL.WEIGHTS (or, with `resume`, the newest checkpoint) and stop.
        only_find_batch: say how large a batch fits into the memory, and stop.
    """

    cores: CoresWatch
    resume: bool = False
    eval_only: bool = False
    only_find_batch: bool = False


@dataclass(frozen=True)
class RunContext:
    """What every part of a run on this rank may need, whatever its model and data.

    Attributes:
        task: what the run shall do.
        device: where the model runs.
        channel: by which the ranks talk besides the model's collectives.
        leaving: whether and when the ranks leave.
        output: where files go.
        hold: on that folder.
        refused: what the disk refused of the files in there.
        watch: looks after the run meanwhile.
        history: of the starts and ends in there.
        starts: which launchers have started the run in there, and how often in vain.
    """

    task: Task
    device: torch.device
    channel: Channel
    leaving: Leaving
    output: OutputFolder
    hold: Hold
    refused: Refused
    watch: Watch
    history: History
    starts: Starts
