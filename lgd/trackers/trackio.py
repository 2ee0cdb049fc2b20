"""trackio: a database in the run's folder, or where its own variables (TRACKIO_...) say."""

from __future__ import annotations

import os
import uuid
import warnings
from typing import Any

from lgd.trackers.tracker import About, Entry, LostError


class Trackio:
    """A run of trackio, which knows runs by their names."""

    def __init__(self, about: About, run: str | None) -> None:
        """Begin a run, or go on with `run`."""
        os.environ.setdefault("TRACKIO_DIR", str(about.folder.absolute()))
        import trackio

        self._complaints: list[str] = []
        warnings.showwarning = self._hear  # it raises nothing: whatever fails is a warning
        self.run = run or f"{about.name}-{uuid.uuid4().hex[:6]}"
        self._run = trackio.init(
            project=about.project,
            name=self.run,
            resume="allow",
            config=dict(about.settings),
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        places = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "TRACKIO_DIR")
        self.place = next(os.environ[name] for name in places if os.environ.get(name))

    def add(self, entry: Entry) -> None:
        """Hand an entry over to the library's own thread."""
        from trackio import Image

        images = {tag: Image(image) for tag, image in entry.images.items()}
        self._run.log({**entry.scalars, **entry.texts, **images}, step=entry.step)
        self._require()

    def close(self, *, finished: bool) -> None:
        """Write what there is."""
        self._run.finish()
        self._require()

    def _hear(
        self, message: Warning | str, category: type[Warning], filename: str, *_: Any, **__: Any
    ) -> None:
        if "trackio" in filename or "trackio" in str(message):
            self._complaints.append(str(message))

    def _require(self) -> None:
        heard, self._complaints = self._complaints, []
        if heard:
            raise LostError(heard[0])
