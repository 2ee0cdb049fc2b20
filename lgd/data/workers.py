"""The processes that load data: how they are started, what comes of it when they fail, and how they end.

Torch's loader expects a worker to fail by an exception that it can send. One that is killed, that runs into
full shared memory, or whose error cannot be sent leaves a lock behind, or half a message, for which others
would wait for ever.
"""

from __future__ import annotations

import gc
import mmap
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.context import ForkContext, ForkProcess
from multiprocessing.queues import Queue
from multiprocessing.util import get_temp_dir
from types import TracebackType
from typing import Any

import torch
from torch.utils.data import Dataset

from lgd.data.errors import DataError, LoadingError
from lgd.ending import remove_shared_memory
from lgd.exits import describe_end
from lgd.ranks.interruption import BLOCKED_AT_START, leave_with_parent
from lgd.words import counted

_SECONDS_TO_DIE = 1.0
"""How long a process may take between the moment at which its connections break and its end."""

_LONGEST_SOCKET = 107
"""Bytes of the path of a socket, by Linux."""

_WAY_OUT = "lower DATALOADER.NUM_WORKERS"


class Worker(ForkProcess):
    """A process that loads data; it leaves signals to the trainer."""

    is_wanted = True
    """Whether its end would be a surprise."""

    def terminate(self) -> None:
        """End it; it ignores SIGTERM, which a scheduler sends to every process."""
        self.is_wanted = False
        self.kill()


class _Queue(Queue):  # type: ignore[type-arg]
    """A queue that sends, in place of what cannot be sent, why; torch's loader would wait for it for ever."""

    def _on_queue_feeder_error(self, error: Exception, item: Any) -> None:
        number, _ = item
        self.put((number, Failure.of(error)))


class _Flag:
    """An event without a lock, which a killed process could hold for ever."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 1)

    def is_set(self) -> bool:
        return self._memory[0] == 1

    def set(self) -> None:
        self._memory[0] = 1


class WorkerContext(ForkContext):
    """Makes the processes of one loader, and what they and the trainer talk by.

    Attributes:
        workers: of the iteration that began last.
    """

    def __init__(self) -> None:
        super().__init__()
        self.workers: list[Worker] = []

    def Process(self, *args: Any, **kwargs: Any) -> Worker:  # type: ignore[override]  # noqa: N802
        """Make a worker."""
        self.workers.append(Worker(*args, **kwargs))
        return self.workers[-1]

    def Queue(self, maxsize: int = 0) -> _Queue:  # noqa: N802
        """Make a queue."""
        return _Queue(maxsize, ctx=self)

    def Event(self) -> _Flag:  # type: ignore[override]  # noqa: N802
        """Make an event."""
        return _Flag()

    @contextmanager
    def starting(self) -> Iterator[None]:
        """Start the workers in this block.

        Raises:
            LoadingError: the system refuses.
            DataError: TMPDIR is too long a path.
        """
        self.workers.clear()
        # Where sockets lie: one for all, since a worker that is killed would leave its own.
        _require_room_for_names(get_temp_dir())
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED_AT_START)
        on_child = signal.getsignal(signal.SIGCHLD)
        try:
            yield
        except OSError as error:
            said = error.strerror or str(error)
            raise LoadingError(f"the data workers cannot be started: {said}{_cure(said)}") from error
        finally:
            if threading.current_thread() is threading.main_thread():
                # Torch's handler would raise from the middle of anything, such as a file being written.
                signal.signal(signal.SIGCHLD, on_child)
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    def explain(self, error: Exception) -> LoadingError:
        """What it means that no batch came; the workers that are left are ended."""
        connection.wait([worker.sentinel for worker in self.workers], _SECONDS_TO_DIE)
        ended = [worker for worker in self.workers if worker.exitcode is not None]
        for worker in self.workers:
            worker.terminate()
        if ended:
            return explain_death(ended[0])
        # The last line: torch puts a whole traceback into the message of an error from another thread.
        last = (str(error).strip().splitlines() or [""])[-1]
        said = f"{type(error).__name__}: {last}"
        return LoadingError(f"no batch came from the data workers: {said}{_cure(said)}")


def _require_room_for_names(folder: str) -> None:
    """Raise DataError where the path of a socket in the folder for temporary files would be too long."""
    left = _LONGEST_SOCKET - len(os.fsencode(folder)) - len("/listener-abcdefgh")
    if left < 0:
        raise DataError(
            f"TMPDIR {tempfile.gettempdir()} is a path {counted(-left, 'byte')} too long for data workers' "
            "sockets; set a shorter one, or DATALOADER.NUM_WORKERS 0"
        )


class WorkersWatch:
    """Looks after the data workers of this process, whatever loader they belong to."""

    def __init__(self) -> None:
        self._seen: set[Worker] = set()

    def __call__(self) -> LoadingError | None:
        """What became of a worker that died, if one did since the last call."""
        self._seen |= {each for each in multiprocessing.active_children() if isinstance(each, Worker)}
        ended = {worker for worker in self._seen if worker.exitcode is not None}
        self._seen -= ended
        deaths = [worker for worker in ended if worker.is_wanted and worker.exitcode != 0]
        return explain_death(deaths[0]) if deaths else None


def explain_death(worker: Worker) -> LoadingError:
    """What it means that a worker has ended."""
    process, code = worker.pid, worker.exitcode
    assert process is not None
    assert code is not None
    remove_shared_memory([process])
    causes = {-signal.SIGKILL: f": {_WAY_OUT}", -signal.SIGBUS: _cure("shared memory")}
    return LoadingError(f"a data worker (pid {process}) {describe_end(code)}{causes.get(code, '')}")


def _cure(said: str) -> str:
    """What most likely helps against an error that says this."""
    said = said.lower()
    if "too many open files" in said or "ancdata" in said:
        return "; raise the limit of open files (ulimit -n)"
    if "shared memory" in said or "no space left" in said:
        return f"; make /dev/shm{_size_of_shared_memory()} larger (docker run --shm-size), or {_WAY_OUT}"
    if "memory" in said or "resource temporarily" in said:
        return f"; {_WAY_OUT}"
    return ""


def _size_of_shared_memory() -> str:
    try:
        found = os.statvfs("/dev/shm")
    except OSError:
        return ""
    size, free = (found.f_frsize * blocks / 2**20 for blocks in (found.f_blocks, found.f_bavail))
    return f" ({size:.0f} MiB, {free:.0f} free)"


@dataclass(frozen=True)
class Failure:
    """Why a worker has no batch.

    Attributes:
        message: one line.
        trace: where it happened.
    """

    message: str
    trace: str

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """Describe an error of this worker, whatever it is: itself, it might not survive the journey."""
        said = f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")
        message = f"a data worker (pid {os.getpid()}) failed: {said}{_cure(said)}"
        return cls(message, "".join(traceback.format_exception(error)))

    def error(self) -> LoadingError:
        """What to raise in the trainer."""
        error = LoadingError(self.message)
        error.add_note("in the worker:\n" + self.trace)
        return error


class WholeBatches(Dataset[Any]):
    """Batches as a worker makes them; an error comes back in the place of its batch, it is not raised.

    Args:
        samples: samples by key.
        pad: makes a batch of samples.
    """

    def __init__(self, samples: Dataset[Any], pad: Callable[[Sequence[Any]], Any]) -> None:
        self._samples = samples
        self._pad = pad

    def __getitems__(self, keys: Sequence[Any]) -> Any:
        """Make the batch of these samples."""
        try:
            return self._pad([self._samples[key] for key in keys])
        except DataError as error:
            return error
        except BaseException as error:
            return Failure.of(error)


def keep(batch: Any) -> Any:
    """The batch, which is whole already."""
    return batch


def prepare_worker(worker: int) -> None:
    """Leave signals to the trainer, which ends its workers itself; a worker goes when the trainer is gone.

    A scheduler that takes the machine back signals every process. A worker that died of it would take the
    trainer with it before this has saved its checkpoint. The trainer's objects are kept out of the worker's
    garbage collections, which would write to them, and so copy the pages that the processes share.
    """
    leave_with_parent(signal.SIGKILL)
    trainer = multiprocessing.parent_process()
    if trainer is not None and os.getppid() != trainer.pid:
        os._exit(0)
    gc.freeze()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    # Torch's handlers of these write to the terminal, where the trainer speaks of it.
    for number in (signal.SIGBUS, signal.SIGSEGV, signal.SIGFPE):
        signal.signal(number, signal.SIG_DFL)
    sys.excepthook = say_unless_gone
    torch.set_num_threads(1)


def say_unless_gone(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Write the traceback of an error, but of a connection that has ended nothing.

    The thread by which a worker hands its memory on (`multiprocessing.resource_sharer`) reports so that the
    trainer is gone; why it is, the trainer has said.
    """
    if not isinstance(error, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, trace)
