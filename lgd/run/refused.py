"""What the disk refuses of the files of a run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from lgd.engine.checkpoint import CheckpointError, say_resumable, with_room
from lgd.ranks import process_group
from lgd.run.output import OutputFolder, shorten

logger = logging.getLogger(__name__)


class Refused:
    """What the disk refused: reported at once and, if it is still missing at the end, an error."""

    def __init__(self, output: OutputFolder) -> None:
        """Nothing yet."""
        self._output = output
        self._reasons: dict[Path, str] = {}

    def attempt(self, path: Path, write: Callable[[], object]) -> bool:
        """Write `path`, for which old checkpoints make room where need be; whether that was done.

        Args:
            path: the file.
            write: may be called several times; raises OSError where the disk refuses.
        """
        try:
            with_room(self._output.checkpoints, write)
        except OSError as error:
            self.note(path, error.strerror or type(error).__name__)
            return False
        self._reasons.pop(path, None)
        return True

    def note(self, path: Path, reason: str) -> None:
        """Report that `path` is not as it should be."""
        self._reasons[path] = reason
        logger.error("could not write %s: %s; the run goes on", path, reason)

    def require_none(self) -> None:
        """Make sure, at the end, that all is written; every rank calls it.

        Raises:
            CheckpointError: some files are not; they are named.
        """
        mine = [f"{path} ({reason})" for path, reason in self._reasons.items()]
        names = process_group.broadcast_object(mine)
        if names:
            stays = say_resumable(self._output.checkpoints)
            raise CheckpointError(f"the run is done, but could not write {shorten(names)}; {stays}")
