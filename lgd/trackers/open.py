"""Which trackers there are, and how they are opened."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from lgd.trackers.process import TrackerProcess
from lgd.trackers.serve import LIBRARIES
from lgd.trackers.tensorboard import TensorBoard
from lgd.trackers.tracker import Log, Writer

TENSORBOARD = "tensorboard"

TRACKERS = (TENSORBOARD, *LIBRARIES)


def open_writers(output_dir: Path, first_step: int, log: Log) -> list[Writer]:
    """Open what is written to, on the first rank.

    Args:
        output_dir: of the run.
        first_step: what there is of earlier events from this step on no longer counts.
        log: what goes where.

    Raises:
        ValueError: TensorBoard is not installed.
        OSError: the folder cannot be written to.
    """
    return list(_open(output_dir, first_step, log))


def _open(output_dir: Path, first_step: int, log: Log) -> Iterator[Writer]:
    for name in dict.fromkeys(log.trackers):
        if name != TENSORBOARD:
            yield TrackerProcess(name, output_dir, log)
            continue
        board = TensorBoard(output_dir, first_step)
        if log.settings:
            board.add_text("config", f"```\n{log.settings}\n```", 0)
        yield board


def find_missing(names: Sequence[str]) -> str | None:
    """Which tracker is not installed, in a line that names its extra; None where all are."""
    for name in names:
        needed = {TENSORBOARD: ("tensorboard",), "mlflow": ("mlflow", "sqlalchemy", "alembic")}
        for package in needed.get(name, (name,)):
            if find_spec(package) is None:
                way_out = "pip install tensorboard" if name == TENSORBOARD else f"pip install 'lgd[{name}]'"
                return f"LOG.TRACKERS {name}: {package} is not installed; {way_out}"
    return None
