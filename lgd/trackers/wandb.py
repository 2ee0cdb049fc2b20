"""Weights & Biases: online where there is a key, else offline, for `wandb sync`."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Any

from lgd.trackers.tracker import About, Entry

_SECONDS = 30.0
"""How long its server may take to answer."""


class WeightsAndBiases:
    """A run of Weights & Biases.

    The steps are a metric beside the others, over which all are drawn. Its own count of steps only rises, and
    drops what comes behind: the score of an evaluation, while the training has gone on.
    """

    def __init__(self, about: About, run: str | None) -> None:
        """Begin a run, or go on with `run`."""
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        self.run = run or uuid.uuid4().hex[:8]
        about.folder.mkdir(parents=True, exist_ok=True)
        mode, doubt = os.environ.get("WANDB_MODE") or ("online" if _has_key() else "offline"), ""
        try:
            self._run = self._begin(about, mode)
        except Exception as error:
            _forget()
            if mode != "online":
                raise
            doubt = f" ({' '.join(str(error).split())[:200]})"
            self._run = self._begin(about, "offline")
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        folder = Path(self._run.dir).parent
        self.place = self._run.url or f"offline in {folder}{doubt}; wandb sync sends it"

    def add(self, entry: Entry) -> None:
        """Hand an entry over to the library's own process."""
        from wandb import Image

        images = {tag: Image(image) for tag, image in entry.images.items()}
        self._run.log({"step": entry.step, **entry.scalars, **entry.texts, **images})

    def close(self, *, finished: bool) -> None:
        """Write, and send if it is online."""
        self._run.finish(exit_code=0 if finished else 1)

    def _begin(self, about: About, mode: str) -> Any:
        import wandb

        quiet = wandb.Settings(
            silent=True, console="off", init_timeout=_SECONDS, x_disable_stats=True, disable_code=True,
            disable_git=True,
        )  # fmt: skip
        return wandb.init(
            project=about.project,
            name=about.name,
            id=self.run,
            resume="allow",
            dir=os.environ.get("WANDB_DIR") or str(about.folder),
            config=dict(about.settings),
            allow_val_change=True,
            mode=mode,
            settings=quiet,
        )


def _forget() -> None:
    """End the library's own process, which takes a run that could not begin for one that is in use."""
    import wandb

    wandb.teardown()


def _has_key() -> bool:
    """Whether the library would find a key without asking for one."""
    import wandb

    return bool(wandb.api.api_key)
