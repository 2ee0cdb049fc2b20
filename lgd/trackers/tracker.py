"""What a tracker is told, and what it must offer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:  # a tracker's process does without
    from torch import Tensor

Scalar = tuple[str, str, float]
"""Model ("student", "teacher", ...), tag and value."""

Picture = npt.NDArray[np.uint8]
"""(H, W, 3) RGB."""


@dataclass(frozen=True)
class Log:
    """What is tracked where.

    Attributes:
        trackers: of `lgd.trackers.open.TRACKERS`, those that are written to.
        project: what the runs of a project share: MLflow's experiment.
        settings: the run's, as YAML.
    """

    trackers: Sequence[str] = ("tensorboard",)
    project: str = "lgd"
    settings: str = ""


class Writer(Protocol):
    """What the training writes to; none of it raises or waits."""

    def add_scalars(self, step: int, scalars: Iterable[Scalar]) -> None:
        """Add points of curves."""

    def add_images(self, tag: str, step: int, images: Sequence[Tensor]) -> None:
        """Add (3, H, W) uint8 RGB images under tags with their index."""

    def add_text(self, tag: str, text: str, step: int) -> None:
        """Add a text, Markdown where that is shown."""

    def flush(self) -> dict[Path, str]:
        """Write what there is; why the disk refuses some of it, by file."""

    def close(self, seconds: float, *, finished: bool) -> None:
        """Write what there is to write in `seconds`; `finished` says whether the training came to its end."""


@dataclass(frozen=True)
class Entry:
    """What a tracker shows of a step. Step and tag tell entries apart.

    Attributes:
        step: steps done.
        tag: the first of its tags.
        time: of day, seconds.
        scalars: points of curves by tag.
        images: by tag.
        texts: by tag.
    """

    step: int
    tag: str
    time: float
    scalars: Mapping[str, float] = field(default_factory=dict)
    images: Mapping[str, Picture] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)


FINISHED, LEFT = b"finished", b"left"
"""A trainer's last word to a tracker's process. (Data workers hold the pipe too: its end may come late.)"""


@dataclass(frozen=True)
class About:
    """The run that is tracked.

    Attributes:
        name: of the run.
        project: see `Log`.
        folder: for what a tracker writes to the disk.
        settings: sections in sections.
    """

    name: str
    project: str
    folder: Path
    settings: Mapping[str, Any]


class LostError(RuntimeError):
    """An entry was taken, but earlier ones are lost."""


class Tracker(Protocol):
    """A run of a tracking library, in a process of its own; all of it may raise and take its time."""

    run: str
    """What finds the run again after a resume."""

    place: str
    """Where to look at it."""

    def add(self, entry: Entry) -> None:
        """Take an entry; raises `LostError` where others are lost."""

    def close(self, *, finished: bool) -> None:
        """Write what there is, and end the run, which a resume may go on with."""
