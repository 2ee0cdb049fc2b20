"""Where a process runs: its host, and what started it there how often."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_LARGEST_NUMBER = 2**31


def scheduler_restarts() -> int:
    """How often the scheduler has started this job again; 0 where it does not tell."""
    count = os.environ.get("SLURM_RESTART_COUNT", "0")
    return int(count) if count.isdecimal() else 0


def identify_agent() -> dict[str, int]:
    """The agent of torch's elastic launcher that started this process, and its restarts; none without."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return {}
    parent = os.getppid()
    restarts = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    _, began = _status(str(parent))
    return {f"{socket.gethostname()}:{parent}:{began}": restarts}


@dataclass(frozen=True)
class Process:
    """A process, so that others can tell whether it still runs.

    Attributes:
        host: name of its machine.
        pid: its number there.
        began: its start, in ticks since the machine's; -1 unknown.
        boot: this start of the machine, which containers on it share; "" unknown.
        namespace: in which `pid` counts; 0 unknown.
    """

    host: str
    pid: int
    began: int
    boot: str
    namespace: int

    @classmethod
    def current(cls) -> Process:
        """This one."""
        _, began = _status("self")
        return cls(socket.gethostname(), os.getpid(), began, *_machine())

    @classmethod
    def from_json(cls, values: Mapping[str, object]) -> Process:
        """What `vars` gave; raises KeyError or ValueError where it is something else."""
        host, boot = values["host"], values["boot"]
        numbers = [values[name] for name in ("pid", "began", "namespace")]
        if not isinstance(host, str) or not isinstance(boot, str) or any(type(n) is not int for n in numbers):
            raise ValueError("not a process")
        pid, began, namespace = (int(str(number)) for number in numbers)
        if not 0 < pid < _LARGEST_NUMBER:  # others stand for groups of processes, this one's among them
            raise ValueError("not a process")
        return cls(host, pid, began, boot, namespace)

    def is_running(self) -> bool | None:
        """Whether it runs; None where that cannot be seen from here, on another machine or in a container."""
        boot, namespace = _machine()
        if not boot or (boot, namespace) != (self.boot, self.namespace):
            return None
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:  # somebody else's
            pass
        state, began = _status(str(self.pid))
        if state in ("Z", "X"):  # ended, and nobody has asked how
            return False
        # Where /proc does not show it, as those of other users may be, its number has to do.
        return -1 in (began, self.began) or began == self.began


def _machine() -> tuple[str, int]:
    """This start of the machine and the namespace of this process's number; "" and 0 where unknown."""
    try:
        if str((_PROC / "self").readlink()) != str(os.getpid()):  # /proc shows another namespace's numbers
            return "", 0
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        return boot, (_PROC / "self/ns/pid").stat().st_ino
    except OSError:
        return "", 0


def _status(process: str) -> tuple[str, int]:
    """A process's state, a letter, and its start, in ticks since the machine's; "" and -1 where unknown."""
    try:
        # The second field, the command in parentheses, may hold spaces.
        fields = (_PROC / process / "stat").read_text().rpartition(")")[2].split()
        return fields[0], int(fields[19])
    except (OSError, ValueError, IndexError):
        return "", -1
