"""The real libraries, offline: what TensorBoard has they have too, each step once, through kills as well."""

import contextlib
import json
import os
import shutil
import signal
import time
from collections import Counter

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.trackers.read_back import read_all
from tests.training import descendants, run_to_end, small_settings, start

pytestmark = pytest.mark.trackers

ALL = "[tensorboard, wandb, mlflow, trackio]"
NAMES = ("wandb", "mlflow", "trackio")


@pytest.fixture(autouse=True)
def nobody_is_known(monkeypatch, tmp_path):
    """Without keys and servers, whoever runs the tests."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "MLFLOW_TRACKING_URI", "TRACKIO_SPACE_ID", "TRACKIO_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)  # where MLflow puts pictures beside a database of one's own


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """MLflow takes seconds to create one, in which a training of seconds is over."""
    from lgd.trackers.mlflow import _create

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    _create(path)
    return path


@pytest.fixture
def server(database, tmp_path, monkeypatch):
    """A database of one's own, as MLFLOW_TRACKING_URI names it."""
    copy = shutil.copy(database, tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{copy}")


def settings_of(data, output):
    return small_settings(
        data,
        output,
        LOG__TRACKERS=ALL,
        SOLVER__MAX_ITER=60,
        SOLVER__CHECKPOINT_PERIOD=10,
        TEST__EVAL_PERIOD=20,
    )


def on_board(folder, kind):
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    read = events.Scalars if kind == "scalars" else events.Images
    return [(tag, event.step) for tag in events.Tags()[kind] for event in read(tag)]


def expected_points(output):
    teacher = [(f"{tag}/teacher", step) for tag, step in on_board(output / "teacher", "scalars")]
    return sorted([*on_board(output, "scalars"), *teacher])


def assert_all_have_what_tensorboard_has(output):
    # A kill before the scores are there lets the same evaluation be done, and shown, again by the resume.
    points, pictures = expected_points(output), sorted(set(on_board(output, "images")))
    assert len(points) > 100
    assert [step for _, step in pictures] == [20, 40, 60]
    for name, (found, shown) in read_all(output).items():
        readable = {tag.replace(":", "-3a-"): tag for tag, _ in pictures}
        assert sorted(found) == points, name
        assert sorted((readable.get(tag, tag), step) for tag, step in shown) == pictures, name


def test_each_has_what_tensorboard_has(small_data, tmp_path):
    said = run_to_end(settings_of(small_data, tmp_path / "run"))
    assert_all_have_what_tensorboard_has(tmp_path / "run")
    assert said.count(": begins run ") == 3
    assert "the training goes on" not in said


def kill_when_all_have(step, settings, output, with_children):
    process, deadline = start(settings), time.monotonic() + 200
    journals = [output / "trackers" / f"{name}.jsonl" for name in NAMES]
    while process.poll() is None and time.monotonic() < deadline:
        if all(path.exists() and f'"step": {step}' in path.read_text() for path in journals):
            break
        time.sleep(0.01)
    victims = [process.pid, *(descendants(process.pid) if with_children else ())]
    for victim in victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    return json.loads((output / "metrics.jsonl").read_text().splitlines()[-1])["iteration"]


def test_a_killed_training_goes_on_in_the_same_runs(small_data, tmp_path, server):
    output = tmp_path / "run"
    settings = settings_of(small_data, output)
    kill_when_all_have(20, settings, output, with_children=False)
    said = run_to_end(settings, "--resume")
    assert said.count(": goes on with run ") == 3
    assert_all_have_what_tensorboard_has(output)


def test_nothing_is_doubled_where_all_processes_are_killed(small_data, tmp_path, server):
    output = tmp_path / "run"
    settings = settings_of(small_data, output)
    reached = kill_when_all_have(20, settings, output, with_children=True)
    run_to_end(settings, "--resume")
    points = set(expected_points(output))
    for name, (found, shown) in read_all(output).items():
        assert max(Counter([*found, *shown]).values()) == 1, name
        assert set(found) <= points, name
        late = {point for point in points if point[1] > reached}
        assert late <= set(found), name
