"""Worker processes of one machine, kept alive by torch's elastic agent, with this project's exit codes."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from torch.distributed import DistError
from torch.distributed.elastic import rendezvous
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
from torch.distributed.elastic.multiprocessing.api import SubprocessContext
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from lgd import exits
from lgd.exits import describe_end
from lgd.ranks.interruption import BLOCKED_AT_START, Interrupted, Interruption
from lgd.ranks.rendezvous import Launch, open_rendezvous
from lgd.ranks.store import UnreachableError

logger = logging.getLogger(__name__)

_LEAVE_SECONDS = 300.0
"""How long workers may take to save and leave, unless the machines wait longer for one another."""

_STOP_SECONDS = 6
"""How long workers may take to end when one was lost, or at Ctrl-C, before they are killed."""

_POLL_SECONDS = 0.05


def run_workers(launch: Launch, interruption: Interruption) -> int:
    """Run the workers until they end; return one exit code for all of them.

    A worker that is lost brings, `max_restarts` times, all workers of all machines back: they go on from the
    newest checkpoint. Codes that no new start would change end the run on this machine at once:
    `exits.RUN_AGAIN` and `exits.USER_ERROR`. The signals that ask to leave are passed on to the workers.
    """
    # A restarted machine crashes both agents if workers and agents share a store.
    os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")
    # The others are handled here: torch's handler would raise its way out, and wait 30 s for the workers.
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGINT,SIGHUP,SIGQUIT"
    # Workers that each take every core slow one another down.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // launch.num_workers)))
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    agent: Agent | None = None
    on_ctrl_c = signal.getsignal(signal.SIGINT)  # torch's agent has its own, and leaves it behind
    try:
        interruption.on_signal = _leave
        if interruption.requested:
            _leave()
        handler = open_rendezvous(launch)
        try:
            with tempfile.TemporaryDirectory(prefix="lgd-launch-") as scratch:
                agent = _make_agent(launch, handler, interruption, scratch)
                return _run(agent, interruption)
        finally:
            handler.shutdown()
    except Interrupted:
        return exits.RUN_AGAIN
    except SignalException:
        return exits.CTRL_C
    except (rendezvous.RendezvousError, DistError, ConnectionError, UnreachableError) as error:
        here, reason = socket.gethostname(), _first_line(error.__cause__ or error)
        if agent is not None and isinstance(error, rendezvous.RendezvousTimeoutError):
            reason = _who_is_missing(agent, launch)
        logger.error("%s cannot meet the other machines at %s: %s", here, launch.endpoint, reason)
        return exits.RUN_AGAIN if interruption.requested else exits.FAULT
    finally:
        signal.signal(signal.SIGINT, on_ctrl_c)


def _leave(*_: object) -> None:
    raise Interrupted("asked to leave before the workers were started")


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).split("\n"))) or type(error).__name__


def _who_is_missing(agent: Agent, launch: Launch) -> str:
    seconds = launch.settings.get("join_timeout", launch.settings.get("timeout"))
    others = [name for name in agent.machines if name != socket.gethostname()]
    return f"not all of {launch.min_machines} came in {seconds} s (--rdzv-conf join_timeout)" + (
        f"; at the last start they were this one and {', '.join(others)}" if others else ""
    )


def _machines_at(handler: rendezvous.RendezvousHandler) -> list[str]:
    """Host names of the machines that have come; none where the backend does not tell."""
    # Torch itself only logs them.
    holder = getattr(handler, "_state_holder", None)
    return sorted({node.addr for node in holder.state.participants}) if holder is not None else []


def _is_awaited(handler: rendezvous.RendezvousHandler) -> bool:
    """Whether a machine waits for this one's workers to stop, so that all can be started with it."""
    try:
        return handler.num_nodes_waiting() > 0
    except rendezvous.RendezvousError:
        return False


def _bound_silence(seconds: int) -> None:
    """Let connections of this process break when the other side has not acknowledged anything for so long.

    Torch asks its store without a time-out in places: on a host that is cut off these calls, and with them
    the launcher, would last until the kernel gives up sending, a quarter of an hour.
    """
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(int(path.name))) as connection:
            if connection.type == socket.SOCK_STREAM and connection.family != socket.AF_UNIX:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * seconds)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, seconds)


def _make_agent(
    launch: Launch, handler: rendezvous.RendezvousHandler, interruption: Interruption, scratch: str
) -> Agent:
    spec = WorkerSpec(
        role="worker",
        local_world_size=launch.num_workers,
        entrypoint=sys.executable,
        args=tuple(launch.command),
        rdzv_handler=handler,
        max_restarts=launch.max_restarts,
        local_addr=launch.local_address,
    )
    keep = Std.ALL if launch.log_folder else Std.NONE
    return Agent(spec, DefaultLogsSpecs(launch.log_folder or scratch, tee=keep), interruption, launch)


def _run(agent: Agent, interruption: Interruption) -> int:
    result = agent.run()
    if result is None:  # the run ended without needing this machine
        return exits.DONE
    codes = [failure.exitcode for failure in result.failures.values()]
    if not codes:
        return exits.DONE
    for code in (exits.RUN_AGAIN, exits.USER_ERROR):
        if code in codes:
            return code
    if interruption.requested:
        return exits.RUN_AGAIN
    return next((code for code in codes if code > 0), 1)


def _order(item: tuple[int, ProcessFailure]) -> tuple[bool, int, int]:
    rank, failure = item
    return bool(failure.error_file_data.get("follows")), failure.timestamp, rank


def _describe_failure(rank: int, failure: ProcessFailure) -> str:
    """Who ended, how, and what it said last."""
    line = f"rank {rank} (process {failure.pid} on {socket.gethostname()}) {describe_end(failure.exitcode)}"
    has_spoken = "follows" in failure.error_file_data
    return f"{line}: {failure.message}" if has_spoken else line


class Agent(LocalElasticAgent):
    """Torch's agent, but it tells a worker that was asked to leave from one that was lost."""

    def __init__(
        self, spec: WorkerSpec, logs: DefaultLogsSpecs, interruption: Interruption, launch: Launch
    ) -> None:
        """Prepare; `run` starts the workers."""
        super().__init__(spec, logs)
        self.machines: list[str] = []
        """Host names of those that took part in the last start, where the backend tells."""
        self._launch = launch
        self._interruption = interruption
        self._process_ids: list[int] = []
        self._lost: set[int] = set()  # process ids of the workers that ended first
        self._is_joining = False
        self._leaving_since: float | None = None
        interruption.on_signal = self._pass_on

    def _rendezvous(self, worker_group: WorkerGroup) -> None:
        self._is_joining = True
        self._leave_if_asked()
        try:
            super()._rendezvous(worker_group)
            self.machines = _machines_at(worker_group.spec.rdzv_handler)
            _bound_silence(self._launch.read_seconds)
        finally:
            self._is_joining = False

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        """Start the workers, with the signals blocked until each of them can handle them."""
        self._leaving_since = None
        signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED_AT_START)
        try:
            process_ids: dict[int, Any] = super()._start_workers(worker_group)
            self._process_ids = list(process_ids.values())
            self._bound_stop()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, BLOCKED_AT_START)
        if self._interruption.requested:
            self._pass_on(signal.SIGTERM)
        return process_ids

    def _bound_stop(self) -> None:
        """Let the workers that are left, after a lost one or at Ctrl-C, not take the half minute of torch."""
        context = self._pcontext
        assert isinstance(context, SubprocessContext)
        close = context.close

        def close_soon(death_sig: signal.Signals | None = None, timeout: int = _STOP_SECONDS) -> None:
            self._lost = self._lost or {
                handler.proc.pid for handler in context.subprocess_handlers.values() if handler.proc.poll()
            }
            close(death_sig, min(timeout, _STOP_SECONDS))

        self._lost.clear()
        context.close = close_soon  # type: ignore[method-assign]

    def _stop_workers(self, worker_group: WorkerGroup) -> None:
        if worker_group.state == WorkerState.HEALTHY:
            logger.info("another machine joins: the workers save, leave, and are started again with it")
            self._tell(signal.SIGTERM)
            while self._are_leaving(everybody=True):
                time.sleep(_POLL_SECONDS)
        # Not SIGTERM: those that are left are lost, or stand.
        self._process_ids = []
        self._shutdown(signal.SIGKILL)

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        if self._are_leaving():  # torch would kill them 30 s after the first of them has left
            return RunResult(state=WorkerState.HEALTHY)
        result: RunResult = super()._monitor_workers(worker_group)
        if result.state != WorkerState.HEALTHY:
            self._process_ids = []
        if not result.is_failed():
            return result
        codes = {failure.exitcode for failure in result.failures.values()}
        if exits.RUN_AGAIN in codes:
            # To the agent a success: no restart, and it waits for the other machines' workers.
            result.state = WorkerState.SUCCEEDED
            result.return_values = dict.fromkeys(worker.global_rank for worker in worker_group.workers)
            if not self._interruption.requested and _is_awaited(worker_group.spec.rdzv_handler):
                result.state = WorkerState.HEALTHY  # another launcher saw the new machine before this one
        elif exits.USER_ERROR in codes:
            self._remaining_restarts = 0
            if len(codes) > 1:
                self._report(result)
        else:
            self._report(result)
        return result

    def _are_leaving(self, *, everybody: bool = False) -> bool:
        """Whether some workers still have to save and leave, and may: all of them, or if one has left.

        Rank 0 writes the checkpoint, which takes as long as the disk needs.
        """
        assert isinstance(self._pcontext, SubprocessContext)
        codes = [handler.proc.poll() for handler in self._pcontext.subprocess_handlers.values()]
        if None not in codes or not (everybody or exits.RUN_AGAIN in codes):
            return False
        if self._leaving_since is None:
            self._leaving_since = time.monotonic()
        patience = max(_LEAVE_SECONDS, float(self._launch.settings.get("join_timeout", 0)))
        return time.monotonic() - self._leaving_since < patience

    def _report(self, result: RunResult) -> None:
        """Say whom the run lost: last the first to go, and not one that went because of another."""
        failures = sorted(result.failures.items(), key=_order, reverse=True)
        lines = [_describe_failure(rank, each) for rank, each in failures if each.pid in self._lost]
        for line in lines if self._remaining_restarts else lines[:-1]:
            logger.error("%s", line)
        if self._remaining_restarts:
            logger.error(
                "starting again from the newest checkpoint, if there is one; restarts left: %d",
                self._remaining_restarts,
            )
        else:
            with contextlib.suppress(OSError):
                sys.stderr.write(f"error: {lines[-1]}\n")

    def _pass_on(self, number: signal.Signals) -> None:
        """Send a signal on to the workers; where they are not there yet, leave."""
        self._tell(number)
        if self._is_joining:
            self._leave_if_asked()

    def _tell(self, number: signal.Signals) -> None:
        for process_id in self._process_ids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process_id, number)

    def _leave_if_asked(self) -> None:
        if self._interruption.requested:
            raise Interrupted("asked to leave before the workers were started")
