"""MLflow: the server of MLFLOW_TRACKING_URI, else a database in the run's folder."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lgd.trackers.tracker import About, Entry, LostError

_MOST_PARAMS, _MOST_METRICS = 100, 1000
"""Of one request."""

_IN_METRICS, _IN_IMAGES = r"\w\-. :/", r"a-zA-Z0-9_\-. /"
"""The characters that names may have."""

_LONGEST = 5000
"""Characters of a value that every server takes."""


class MLflow:
    """A run of MLflow."""

    def __init__(self, about: About, run: str | None) -> None:
        """Begin a run, or go on with `run`, whose parameters stay."""
        # What fails is tried again here, for as long as the training goes on.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import MlflowClient

        self.place = os.environ.get("MLFLOW_TRACKING_URI", "")
        artifacts = None
        if not self.place:
            about.folder.mkdir(parents=True, exist_ok=True)
            database = about.folder.absolute() / "mlflow.db"
            if not database.exists():
                _create(database)
            self.place = f"sqlite:///{database}"
            artifacts = (about.folder.absolute() / "artifacts").as_uri()
        self._client = MlflowClient(self.place)
        if run is None:
            run = self._begin(about, artifacts)
        else:
            self._client.update_run(run, status="RUNNING")
        self.run = run

    def add(self, entry: Entry) -> None:
        """Send an entry; one that is sent twice, as nobody answered, is there once."""
        from mlflow.exceptions import MlflowException

        try:
            self._send(entry)
        except MlflowException as error:
            if error.error_code == "INVALID_PARAMETER_VALUE":  # for ever
                raise LostError(str(error)) from error
            raise

    def close(self, *, finished: bool) -> None:
        """Say that it has ended."""
        self._client.set_terminated(self.run, "FINISHED" if finished else "KILLED")

    def _send(self, entry: Entry) -> None:
        from mlflow.entities import Metric

        time = int(1000 * entry.time)
        points = iter(entry.scalars.items())
        while some := list(itertools.islice(points, _MOST_METRICS)):
            metrics = [Metric(_plain(tag, _IN_METRICS), value, time, entry.step) for tag, value in some]
            self._client.log_batch(self.run, metrics=metrics)
        for tag, image in entry.images.items():
            key = _plain(tag, _IN_IMAGES)
            self._client.log_image(self.run, image, key=key, step=entry.step, timestamp=time)
        for tag, text in entry.texts.items():
            self._client.set_tag(self.run, _plain(tag, _IN_METRICS), text[:_LONGEST])

    def _begin(self, about: About, artifacts: str | None) -> str:
        from mlflow.entities import Param

        client = self._client
        experiment = client.get_experiment_by_name(about.project)
        if experiment is None:
            number = client.create_experiment(about.project, artifacts)
        else:
            number = experiment.experiment_id
        run: str = client.create_run(number, run_name=about.name).info.run_id
        params = (Param(key, str(value)[:_LONGEST]) for key, value in _flatten(about.settings))
        while some := list(itertools.islice(params, _MOST_PARAMS)):
            client.log_batch(run, params=some)
        return run


def _create(database: Path) -> None:
    """Create a database, whole or not at all.

    MLflow does it in dozens of steps and as many seconds, and one that was killed between them is of no use
    ever after. Not all of the steps need to be on the disk, but the last one.
    """
    from mlflow import MlflowClient
    from sqlalchemy import Engine, event

    def be_quick(connection: Any, record: Any) -> None:
        connection.execute("PRAGMA synchronous = OFF")

    new = database.with_name(f"new-{database.name}")
    new.unlink(missing_ok=True)
    event.listen(Engine, "connect", be_quick)
    try:
        MlflowClient(f"sqlite:///{new}").search_experiments()
    finally:
        event.remove(Engine, "connect", be_quick)
    with new.open("rb") as file:
        os.fsync(file.fileno())
    new.replace(database)


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each setting with its whole name."""
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _plain(tag: str, allowed: str) -> str:
    """A tag of the characters that MLflow takes; others by their numbers, so that no two tags become one."""
    return re.sub(f"[^{allowed}]", lambda found: f"-{ord(found[0]):x}-", tag)
