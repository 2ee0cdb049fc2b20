"""Who has OUTPUT_DIR, as `run.lock` says it."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Collection
from dataclasses import dataclass, replace

from lgd.run.job import scheduler_job
from lgd.run.place import Process, scheduler_restarts


@dataclass(frozen=True)
class Holder:
    """What the file says.

    Attributes:
        token: of this hold, 32 hexadecimal digits.
        process: rank 0.
        job: of the scheduler, None without.
        restarts: of that job, by the scheduler.
        agents: the elastic agents that started the run's workers.
        since: seconds since 1970, by the holder's clock.
        step: that it has reached; None before the first.
        beat: the count.
    """

    token: str
    process: Process
    job: str | None
    restarts: int
    agents: tuple[str, ...]
    since: float
    step: int | None = None
    beat: int = 0

    @classmethod
    def current(cls, agents: Collection[str]) -> Holder:
        """This process, as a new holder."""
        return cls(
            token=uuid.uuid4().hex,
            process=Process.current(),
            job=scheduler_job() or None,
            restarts=scheduler_restarts(),
            agents=tuple(sorted(agents)),
            since=time.time(),
        )

    @classmethod
    def read(cls, content: bytes) -> Holder | None:
        """Read the file's content; None where that is not whole."""
        try:
            values = json.loads(content)
            holder = cls(**{**values, "process": Process.from_json(values["process"])})
            agents = tuple(str(agent) for agent in holder.agents)
            time.localtime(holder.since)  # may be beyond what there are dates for
        except (ValueError, TypeError, KeyError, OverflowError, OSError, RecursionError):
            return None
        numbers = (holder.restarts, holder.beat, 0 if holder.step is None else holder.step)
        texts = (holder.token, holder.job or "")
        is_sound = all(type(each) is int for each in numbers) and all(type(each) is str for each in texts)
        return replace(holder, agents=agents) if is_sound else None

    def content(self, size: int) -> bytes:
        """What the file has to say, in `size` bytes or more."""
        return json.dumps({**vars(self), "process": vars(self.process)}).encode().ljust(size - 1) + b"\n"

    def describe(self) -> str:
        """Who it is, since when and how far, in half a line."""
        job = f", job {self.job}" if self.job else ""
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        step = "before its first step" if self.step is None else f"last at step {self.step}"
        return f"process {self.process.pid} on {self.process.host}{job}, since {since}, {step}"
