"""One OUTPUT_DIR for all nodes: each sees what rank 0 writes there, and rank 0 what any node has there."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lgd.engine.checkpoint import SECONDS_TO_SEE
from lgd.files import temporary_name
from lgd.ranks import process_group
from lgd.ranks.process_group import LaunchInfo
from lgd.run.holder import Holder
from lgd.run.lock import FolderError, Hold
from lgd.run.output import OutputFolder, shorten

_LOOK_SECONDS = 0.2


@dataclass(frozen=True)
class _View:
    """What a rank sees.

    Attributes:
        host: where it runs.
        sees_lock: whether it finds rank 0's name in run.lock.
        files: in OUTPUT_DIR, by their paths in there: its own mark, and checkpoints.
    """

    host: str
    sees_lock: bool
    files: tuple[str, ...]


def require_shared(output: OutputFolder, hold: Hold) -> None:
    """Make sure that all nodes have the same OUTPUT_DIR; every rank calls it.

    File systems may show late what another node wrote, so it is looked for a while.

    Raises:
        FolderError: on every rank, some nodes have another folder there; they are named.
    """
    if process_group.get_world_size() == 1:
        return
    mark = temporary_name(output.root / f"rank{process_group.get_rank()}", hold.token)
    is_first = LaunchInfo.from_environment().local_rank == 0
    deadline = time.monotonic() + SECONDS_TO_SEE
    try:
        while True:
            if is_first:
                # A node that may only read is none to refuse; the mark is seen, or the checkpoints are.
                with contextlib.suppress(OSError):
                    mark.touch()
            views = process_group.all_gather_objects(_look(output, hold, mark))
            found = _find_problem(output, views) if process_group.is_main() else ""
            is_last = time.monotonic() > deadline
            problem, is_last = process_group.broadcast_object((found, is_last))
            if not problem:
                return
            if is_last:
                raise FolderError(problem)
            time.sleep(_LOOK_SECONDS)
    finally:
        with contextlib.suppress(OSError):
            mark.unlink()


def _look(output: OutputFolder, hold: Hold, mark: Path) -> _View:
    try:
        holder = Holder.read(hold.path.read_bytes())
    except OSError:
        holder = None
    paths = [mark, *(output.checkpoints.glob("step_*.pth") if output.checkpoints.is_dir() else ())]
    files = tuple(str(path.relative_to(output.root)) for path in paths if _can_open(path))
    return _View(socket.gethostname(), holder is not None and holder.token == hold.token, files)


def _find_problem(output: OutputFolder, views: Sequence[_View]) -> str:
    """What is wrong, on rank 0, "" for nothing."""
    here = f"rank 0 on {views[0].host}"
    blind = [rank for rank, view in enumerate(views) if not view.sees_lock]
    if blind:
        has = sorted({Path(file).name for rank in blind for file in views[rank].files if "step_" in file})
        return (
            f"OUTPUT_DIR {output.root} on {_name(blind, views)} is not the folder that {here} writes to"
            + (f" (it has {shorten(has)})" if has else "")
            + ": all nodes must share OUTPUT_DIR, by the same path"
        )
    for rank, view in enumerate(views):
        hidden = [file for file in view.files if not _can_open(output.root / file)]
        if hidden:
            return (
                f"OUTPUT_DIR {output.root} on {_name([rank], views)} has {Path(hidden[0]).name}, which "
                f"{here} does not see: all nodes must share OUTPUT_DIR, by the same path"
            )
    return ""


def _can_open(path: Path) -> bool:
    """Whether a file is there: NFS asks its server when one is opened, not when it is listed."""
    try:
        with path.open("rb"):
            return True
    except OSError:
        return False


def _name(ranks: Sequence[int], views: Sequence[_View]) -> str:
    return shorten([f"rank {rank} on {views[rank].host}" for rank in ranks])
