"""OUTPUT_DIR/run.lock: who has the folder, so that no two runs write there at once.

It is a file that only one can make (O_EXCL, also on NFS), with a count in it that its holder raises every few
seconds. It says more than a lock of the kernel could: who holds it, on whatever machine. A holder that is
dead never blocks. On its own machine the process table tells; on another one its count does, which stands
still. Clocks are never compared. A holder that was taken for dead (its machine slept) finds another's name in
the file before it writes anything, and ends.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lgd.engine.checkpoint import say_resumable, with_room
from lgd.files import FULL, clear_leftovers, read_small, say_why, temporary_name
from lgd.ranks import process_group
from lgd.ranks.interruption import Interrupted
from lgd.ranks.leaving import Leaving
from lgd.run.holder import Holder
from lgd.run.output import FolderLostError

logger = logging.getLogger(__name__)

BEAT_SECONDS = 5.0
"""How often the holder raises its count."""

WATCH_SECONDS = 30.0
"""How long the count of a live holder may seem to stand still: storage hangs, and shows things late."""

_UNREADABLE_SECONDS = 3.0
"""How long a file that says nothing may be one that is just being made."""

_LOOK_SECONDS = 0.5

_LARGEST = 2**20
"""Bytes of a file that could be one of ours."""


class FolderError(ValueError):
    """OUTPUT_DIR cannot be used: another run has it, or it is no folder to write to."""


class Hold:
    """A run's hold on OUTPUT_DIR. It is rank 0's; on the other ranks nothing is asked of it.

    Attributes:
        token: what the file says while the folder is this run's; the same on all ranks.
        step: that the run has reached, for those who ask.
    """

    def __init__(self, root: Path, agents: Collection[str] = ()) -> None:
        """Prepare; `take` does it."""
        self.path = root / "run.lock"
        self.step: int | None = None
        self._me = Holder.current(agents)
        self.token = self._me.token
        self._size = len(self._me.content(0)) + 64  # numbers grow
        self._made: list[Path] = []
        self._identity = (0, 0)  # of the folder: another of the same name is not it
        self._file = -1
        self._confirmed = 0.0
        self._problem: FolderError | FolderLostError | None = None
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    def take(self, shall_stop: Callable[[], bool] = lambda: False) -> None:
        """Take the folder, making it where it is not there.

        Args:
            shall_stop: asked while it is not clear whether another holder lives.

        Raises:
            FolderError: another run has it, or the disk refuses.
            Interrupted: `shall_stop` said so.
        """
        try:
            self._made = _make_folder(self.path.parent)
            while not (self._create() or self._take_from_another(shall_stop)):
                pass
        except OSError as error:
            reason = say_why(error, self.path)
            stays = f"; {say_resumable(self.path.parent / 'checkpoints')}" if error.errno in FULL else ""
            raise FolderError(f"OUTPUT_DIR {self.path.parent} cannot be used: {reason}{stays}") from error
        self._identity = _identify(self.path.parent)
        self._confirmed = time.monotonic()
        self._thread = threading.Thread(target=self._keep_beating, name="run.lock", daemon=True)
        self._thread.start()

    def require(self, *, look: bool = False) -> None:
        """Make sure, before something is written, that the folder is still this run's.

        Args:
            look: look now, and do not rely on the last beat.

        Raises:
            FolderError: another run has taken it over.
            FolderLostError: it is gone.
        """
        if self._thread is None:
            return
        # After a long time without a beat this process, or its machine, slept.
        if look or time.monotonic() - self._confirmed > 2 * BEAT_SECONDS:
            with contextlib.suppress(OSError):
                self._check()
        if self._problem is not None:
            raise self._problem

    def find_problem(self) -> FolderError | FolderLostError | None:
        """What has been found to be wrong with the hold, if anything, for those who watch over the run."""
        return self._problem

    def release(self) -> None:
        """Give the folder back, if it is still this run's; also the folder itself, if it is new and empty."""
        if self._thread is not None:
            self._end.set()
            self._thread.join(BEAT_SECONDS)
            self._thread = None
        if self._file >= 0:
            with contextlib.suppress(OSError):
                if self._is_mine(_look(self.path)):
                    self.path.unlink()
            os.close(self._file)
            self._file = -1
        with contextlib.suppress(OSError):
            for folder in self._made if self._problem is None else ():
                folder.rmdir()

    def _create(self) -> bool:
        """Make the file; False where there is one."""
        try:
            self._file = self._write_new(self.path)
        except FileExistsError:
            return False
        return True

    def _write_new(self, path: Path, *, may_be_empty: bool = False) -> int:
        """Make a file that says who this is, or nothing where the disk is full, and return it open."""
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            os.pwrite(file, self._me.content(self._size), 0)
            os.fsync(file)
        except OSError as error:
            if may_be_empty and error.errno in FULL:
                return file
            os.close(file)
            path.unlink(missing_ok=True)
            raise OSError(error.errno, error.strerror, str(path)) from error
        return file

    def _take_from_another(self, shall_stop: Callable[[], bool]) -> bool:
        """Take the folder from a dead holder; False where it is to be tried again.

        Raises:
            FolderError: the holder is alive.
        """
        content = _look(self.path)
        if content is None:
            if self.path.is_symlink():
                raise OSError(errno.ELOOP, "a link to nowhere", str(self.path))
            return False
        if self._is_mine(content):  # made, though NFS lost the answer
            self._file = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
            return True
        if self._is_alive(content, shall_stop):
            holder = Holder.read(_look(self.path) or content) or Holder.read(content)
            whose = f"another run: {holder.describe()}" if holder else "a run that run.lock does not name"
            raise FolderError(
                f"{self.path.parent} is in use by {whose}. Wait for its end, or end it, or choose another "
                "OUTPUT_DIR"
            )
        return self._take_over(content)

    def _is_alive(self, content: bytes, shall_stop: Callable[[], bool]) -> bool:
        """Whether the holder that the file names lives; watches for a while where only its count can tell."""
        holder = Holder.read(content)
        if holder is not None:
            if self._was_ended(holder):
                return False
            runs = holder.process.is_running()
            if runs is not None:
                return runs
            logger.info("%s is held by %s; watching whether it lives", self.path.parent, holder.describe())
        seconds = _UNREADABLE_SECONDS if holder is None else WATCH_SECONDS
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if shall_stop():
                raise Interrupted(
                    "asked to leave while the holder of OUTPUT_DIR was watched: nothing to save"
                )
            time.sleep(_LOOK_SECONDS)
            now = _look(self.path)
            if now != content:
                return now is not None and Holder.read(now) is not None and not self._is_mine(now)
        return False

    def _was_ended(self, holder: Holder) -> bool:
        """Whether who started this run has ended that one: its own launcher, or the scheduler."""
        if set(holder.agents) & set(self._me.agents):
            return True
        return holder.job is not None and holder.job == self._me.job and holder.restarts < self._me.restarts

    def _take_over(self, dead: bytes) -> bool:
        """Put this run's name in the place of a dead one's; False where somebody else is about to.

        Whoever makes the guard, whose name hangs on the dead content, is the only one that may.
        """
        guard = _guard(self.path, dead)
        try:
            os.close(self._write_new(guard, may_be_empty=True))
        except FileExistsError:
            self._await(guard)
            return False
        try:
            if _look(self.path) != dead:
                return False
            temporary, checkpoints = temporary_name(self.path, self.token), self.path.parent / "checkpoints"
            clear_leftovers(checkpoints)  # which may be what fills the disk
            file = with_room(checkpoints, lambda: self._write_new(temporary))
            temporary.replace(self.path)
        finally:
            guard.unlink(missing_ok=True)
        if not self._is_mine(_look(self.path)):
            os.close(file)
            return False
        self._file = file
        holder = Holder.read(dead)
        logger.info(
            "%s taken over from a run that is dead: %s", self.path.parent, holder and holder.describe()
        )
        return True

    def _await(self, guard: Path) -> None:
        """Wait for whoever takes over to be done, a matter of moments; who died over it is done too."""
        deadline = time.monotonic() + WATCH_SECONDS
        while (content := _look(guard)) is not None:
            holder = Holder.read(content)
            if time.monotonic() > deadline or (holder and holder.process.is_running() is False):
                self._remove_dead(guard, content)
                return
            time.sleep(0.05)

    def _remove_dead(self, guard: Path, dead: bytes) -> None:
        """Remove the guard of who died over it, but not the next one's, which may have come since.

        So this is guarded as well: whoever makes the guard's own guard looks again what it removes.
        """
        inner = _guard(guard, dead)
        try:
            os.close(self._write_new(inner, may_be_empty=True))
        except FileExistsError:
            self._await(inner)
            return
        try:
            if _look(guard) == dead:
                guard.unlink(missing_ok=True)
        finally:
            inner.unlink(missing_ok=True)

    def _is_mine(self, content: bytes | None) -> bool:
        holder = Holder.read(content) if content else None
        return holder is not None and holder.token == self.token

    def _keep_beating(self) -> None:
        while not self._end.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):  # a disk that hangs or is full: the next beat may do
                self._check()
                if self._problem is None:
                    self._beat()

    def _beat(self) -> None:
        self._me = replace(self._me, step=self.step, beat=self._me.beat + 1)
        # Into the file that this process made: if it was taken over, that one is another.
        os.pwrite(self._file, self._me.content(self._size), 0)
        os.fdatasync(self._file)

    def _check(self) -> None:
        """Find out whether the folder is still this run's."""
        content = _look(self.path)
        if self._is_mine(content):
            self._confirmed = time.monotonic()
        elif not self.path.parent.is_dir() or _identify(self.path.parent) != self._identity:
            self._problem = FolderLostError(f"OUTPUT_DIR {self.path.parent} is gone")
        elif content is None:  # somebody removed it by hand
            os.close(self._file)
            self._file = -1
            self._create()
        elif (holder := Holder.read(content)) is not None:
            self._problem = FolderError(f"{self.path.parent} was taken over by {holder.describe()}")


def _guard(path: Path, dead: bytes) -> Path:
    return temporary_name(path, hashlib.sha256(dead).hexdigest()[:32])


def _look(path: Path) -> bytes | None:
    """The content of the file as it is now; None where there is none. Opening makes NFS ask its server."""
    try:
        return read_small(path, _LARGEST)
    except FileNotFoundError:
        return None


def _identify(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _make_folder(folder: Path) -> list[Path]:
    """Make a folder with those above it; return those that were made, innermost first."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


@contextlib.contextmanager
def hold_folder(root: Path, agents: Mapping[str, Any], leaving: Leaving) -> Iterator[Hold]:
    """Hold `root` for the block; every rank calls this, rank 0 does it.

    Args:
        root: OUTPUT_DIR.
        agents: the elastic agents of all ranks.
        leaving: gives up waiting where this rank is asked to leave.

    Raises:
        FolderError: on every rank, another run has it, or it is no folder to write to.
        Interrupted: on every rank, asked to leave meanwhile.
    """
    hold = Hold(root, agents)
    try:
        process_group.on_main_alone(lambda: hold.take(lambda: leaving.asked))
        hold.token = process_group.broadcast_object(hold.token)
        yield hold
    finally:
        hold.release()
