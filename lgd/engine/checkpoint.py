"""Checkpoints that survive a crash: written aside, flushed, renamed, and sealed by a checksum.

`OUTPUT_DIR/checkpoints/step_0000500.pth` holds the state, `step_0000500.json` beside it its size and
SHA-256. The seal is written last, so a checkpoint without a fitting seal is not whole and never read. What
becomes known after it was written, the score of its step, is written into the seal (`amend_checkpoint`).
"""

from __future__ import annotations

import errno
import json
import logging
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import torch

from lgd.engine.seals import AMENDABLE, NO_SEAL, check_seal, make_seal, read_amendments, read_seal
from lgd.files import FULL, replacing, write_text_atomically
from lgd.ranks import process_group

logger = logging.getLogger(__name__)

T = TypeVar("T")

FORMAT = "lgd"

SECONDS_TO_SEE = 30.0
"""How long a shared file system may take to show every node what one has written."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be written, read or used."""


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint found on disk.

    Attributes:
        path: the `.pth` file.
        step: steps done when it was written.
        state: its content.
    """

    path: Path
    step: int
    state: dict[str, Any]


def save_file(path: Path, content: dict[str, Any]) -> None:
    """Write `content` so that `path` holds either the old file or the whole new one.

    Raises:
        CheckpointError: the disk is full or the folder not writable; an older `path` stays.
    """
    try:
        write_file(path, content)
    except OSError as error:
        raise CheckpointError(f"could not write {path}: {_reason(error)}") from error


def write_file(path: Path, content: dict[str, Any]) -> None:
    """`save_file`, but raises OSError, with the reason that torch keeps for itself."""
    with replacing(path) as file:
        witness = _Witness(file)
        try:
            torch.save(content, witness)  # type: ignore[arg-type]
        except RuntimeError as error:  # what torch's zip writer makes of a failing disk
            reason = witness.error or OSError(errno.EIO, f"the disk is failing ({_reason(error)})")
            raise OSError(reason.errno, reason.strerror, str(path)) from error


class _Witness:
    """A file that remembers what the disk said: torch's zip writer does not hand it on."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()


def with_room(folder: Path, write: Callable[[], T]) -> T:
    """Return what `write` does; while it finds the disk full, the oldest checkpoint makes room for it.

    Args:
        folder: where the checkpoints lie. The newest whole one always stays.
        write: may be called several times.

    Raises:
        OSError: the disk is full all the same, or something else is wrong with it.
    """
    while True:
        try:
            return write()
        except OSError as error:
            if error.errno not in FULL or not _give_up_oldest(folder):
                raise


def _give_up_oldest(folder: Path) -> bool:
    """Remove the least useful checkpoint, if it is not the only one to resume from; whether there was one."""
    paths = _steps_on_disk(folder)
    newest = _newest_whole(folder)
    others = [path for path in paths if path != newest]
    broken = [path for path in others if not path.with_suffix(".json").exists()]
    for path in [*broken, *reversed(others)]:
        logger.warning("the disk is full: %s is given up to make room", path)
        if _discard(path.with_suffix(".json")) and _discard(path):
            return True
    return False


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], *, keep: int) -> Path:
    """Write and seal the checkpoint of `step`, then drop all but the newest `keep`.

    On a full disk the oldest ones are given up for it, never the newest whole one. A whole checkpoint of
    `step` that is there already, of the run that this one goes on from, stays; only `AMENDABLE` is renewed.

    Args:
        folder: where the checkpoints lie.
        step: steps done.
        state: what `load_newest` gives back; tensors and plain containers only.
        keep: how many to keep, at least 1.

    Raises:
        CheckpointError: it could not be written; the earlier ones stay as they are.
    """
    path = _checkpoint_path(folder, step)
    if path.exists() and check_seal(path) is None:
        # Not written anew: on a full disk that could cost the one that is there.
        attempt(
            lambda: amend_checkpoint(folder, step, {key: state[key] for key in AMENDABLE if key in state})
        )
        return path
    for leftover in folder.glob(".step_*.tmp"):  # of a run that was killed while it wrote
        _discard(leftover)
    try:
        with_room(folder, lambda: _write_and_seal(path, {"format": FORMAT, "step": step, **state}))
    except OSError as error:
        reason = f"could not write {path}: {_reason(error)}"
        raise CheckpointError(
            f"checkpoint of step {step} not saved ({reason}); {say_resumable(folder)}"
        ) from error
    # Those of later steps were passed over as damaged; they count for nothing.
    earlier = [old for old in _steps_on_disk(folder) if _step_of(old) <= step]
    for old in earlier[keep:]:
        _discard(old.with_suffix(".json"))
        _discard(old)
    return path


def _write_and_seal(path: Path, content: dict[str, Any]) -> None:
    seal = path.with_suffix(".json")
    # A seal must never outlive its file: take an old one away before the file is replaced.
    seal.unlink(missing_ok=True)
    try:
        write_file(path, content)
        write_text_atomically(seal, json.dumps(make_seal(path, content["step"])))
    except OSError:
        _discard(path)  # without a seal it only takes room
        raise


def say_resumable(folder: Path) -> str:
    """Say which checkpoint there is to go on from."""
    path = _newest_whole(folder)
    if path is None:
        return "there is no checkpoint to resume from"
    return f"{path.name} stays: --resume goes on from step {_step_of(path)}"


def sealed_steps(folder: Path) -> list[int]:
    """Steps of the checkpoints that are sealed, newest first; their content is not looked at."""
    return [_step_of(path) for path in _steps_on_disk(folder) if path.with_suffix(".json").exists()]


def _newest_whole(folder: Path) -> Path | None:
    return next((path for path in _steps_on_disk(folder) if check_seal(path) is None), None)


def amend_checkpoint(folder: Path, step: int, changes: Mapping[str, Any]) -> None:
    """Write beside the seal of a checkpoint what became known later; it then goes over what is in the file.

    Args:
        folder: where the checkpoints lie.
        step: whose checkpoint; if there is none, because it could not be saved, nothing is done.
        changes: new values of the state, anything that JSON can hold.

    Raises:
        CheckpointError: it could not be written; the checkpoint stays as it is.
    """
    seal = _checkpoint_path(folder, step).with_suffix(".json")
    try:
        if seal.exists():
            record = read_seal(seal)
            write_text_atomically(seal, json.dumps({**record, "amended": dict(changes)}))
    except (OSError, *NO_SEAL) as error:
        raise CheckpointError(f"could not write {seal}: {_reason(error)}") from error


def attempt(write: Callable[[], object]) -> bool:
    """Write a checkpoint; whether that was done. One that fails is reported and training goes on."""
    try:
        write()
    except CheckpointError as error:
        logger.error("%s; training goes on", error)
        return False
    return True


def load_newest(folder: Path, *, period: int = 1) -> Checkpoint | None:
    """Read the newest whole checkpoint; a damaged one is named in the log and passed over.

    Args:
        folder: where they lie.
        period: look at those of multiples of so many steps alone.

    Returns:
        The checkpoint, or None where the folder holds none at all.

    Raises:
        CheckpointError: there are checkpoints, but not one of them is whole.
    """
    damaged: list[str] = []
    for path in [path for path in _steps_on_disk(folder) if _step_of(path) % period == 0]:
        problem = check_seal(path)
        if problem is None:
            state = read_file(path) | read_amendments(path)
            if damaged:
                logger.warning("falling back to %s", path)
            return Checkpoint(path, _step_of(path), state)
        logger.warning("damaged checkpoint passed over: %s (%s)", path, problem)
        damaged.append(path.name)
    if damaged:
        raise CheckpointError(
            f"no whole checkpoint in {folder}: {', '.join(damaged)} damaged; "
            f"start without --resume, or from MODEL.WEIGHTS{_name_weights(folder.parent)}"
        )
    return None


def _name_weights(output: Path) -> str:
    """The newest of a run's files of weights alone, "" without one."""
    found = [output / name for name in ("model_final.pth", "model_best.pth")]
    return next((f" {path}" for path in found if path.is_file()), "")


def find_newest(folder: Path, *, period: int = 1) -> Checkpoint | None:
    """`load_newest` on rank 0, and the same file on the other ranks.

    Raises:
        CheckpointError: as `load_newest` on every rank; or a rank does not see rank 0's file.
    """
    found: Checkpoint | None = None
    problem: CheckpointError | None = None
    if process_group.is_main():
        try:
            found = load_newest(folder, period=period)
        except CheckpointError as error:
            problem = error
    path, amended, problem = process_group.broadcast_object(
        (found.path if found else None, read_amendments(found.path) if found else {}, problem)
    )
    if problem is not None:
        raise problem
    views = process_group.all_gather_objects((socket.gethostname(), path is None or _shows(path)))
    blind = [f"rank {rank} on {host}" for rank, (host, sees) in enumerate(views) if not sees]
    if blind:
        raise CheckpointError(f"{path} is not visible on {', '.join(blind)}: all nodes must share OUTPUT_DIR")
    if path is None or found is not None:
        return found
    return Checkpoint(path, _step_of(path), read_file(path) | amended)


def _shows(path: Path) -> bool:
    """Whether a file is there; a shared file system gets some time to show it."""
    deadline = time.monotonic() + SECONDS_TO_SEE
    while not path.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def read_file(path: Path) -> dict[str, Any]:
    """Read one of our files with `weights_only=True`, on the CPU.

    Raises:
        CheckpointError: it is not there, not readable, or not ours.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds on a broken file
        raise CheckpointError(f"cannot read {path}: {_reason(error)}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of this library")
    return content


def _checkpoint_path(folder: Path, step: int) -> Path:
    return folder / f"step_{step:07d}.pth"


def _steps_on_disk(folder: Path) -> list[Path]:
    """The checkpoint files, newest first."""
    paths = [path for path in folder.glob("step_*.pth") if path.stem.removeprefix("step_").isdecimal()]
    return sorted(paths, key=_step_of, reverse=True)


def _step_of(path: Path) -> int:
    return int(path.stem.removeprefix("step_"))


def _discard(path: Path) -> bool:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        logger.warning("could not remove %s: %s", path, error)
        return False
    return True


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def list_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """One line for every key at which two flat settings differ."""
    return [
        f"{key}: {old.get(key)!r} -> {new.get(key)!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]
