"""Trackers of a run: rank 0 writes, a kill doubles nothing, what is missing is said first; figures."""

import json
import os
import signal
import sys
from functools import partial

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.forked import Forked, start_ranks
from tests.test_resume import assert_same_run
from tests.trackers.fakes import WANDB, calls, rows
from tests.training import small_settings


@pytest.fixture
def with_library(tmp_path):
    """What puts the fake library before a training, in its process."""
    folder = tmp_path / "library"
    folder.mkdir()
    (folder / "wandb.py").write_text(WANDB)
    return partial(_with_library, str(folder))


def _with_library(folder, behaviour=""):
    sys.path.insert(0, folder)
    os.environ["FAKE_TRACKER"] = behaviour
    for name in ("WANDB_DIR", "WANDB_MODE", "FAKE_KEY"):
        os.environ.pop(name, None)


def settings_of(data, output, **changes):
    return small_settings(data, output, LOG__TRACKERS="[wandb]", TEST__EVAL_PERIOD=4, **changes)


def points(output):
    """(tag, step, value) of all that was tracked but times, and the phase in words, which each start says."""
    return sorted(
        (tag, row["step"], json.dumps(value))
        for row in rows(output)
        for tag, value in row.items()
        if tag not in ("step", "phase") and not tag.startswith(("speed/", "system/memory"))
    )


def test_a_killed_and_resumed_run_is_tracked_as_one(small_data, tmp_path, with_library):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run = Forked(settings_of(small_data, whole), log=tmp_path / "whole.txt", before=with_library)
    assert run.wait() == 0, run.log.read_text()
    settings = settings_of(small_data, killed)
    first = Forked(settings, log=tmp_path / "first.txt", before=with_library)
    first.wait_for(killed / "metrics.jsonl", '"iteration": 8')
    first.signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    second = Forked(settings, "--resume", log=tmp_path / "second.txt", before=with_library)
    assert second.wait() == 0, second.log.read_text()
    assert_same_run(whole, killed)
    assert points(killed) == points(whole)
    assert {step for tag, step, _ in points(whole) if tag == "loss/total_loss"} == {2, 4, 6, 8, 10, 12}
    assert {step for tag, step, _ in points(whole) if tag.endswith(":val/AP")} == {4, 8, 12}
    assert len({facts["id"] for call, facts in calls(killed) if call == "init"}) == 1
    assert calls(whole)[-1] == ["finish", 0]


def test_of_two_ranks_the_first_writes(small_data, tmp_path, with_library):
    settings = settings_of(small_data, tmp_path / "run", SOLVER__MAX_ITER=4)
    ranks = start_ranks(settings, folder=tmp_path, before=with_library)
    assert [rank.wait() for rank in ranks] == [0, 0]
    assert [call for call, _ in calls(tmp_path / "run")].count("init") == 1
    assert [row["step"] for row in rows(tmp_path / "run") if "loss/total_loss" in row] == [2, 4]


@pytest.mark.parametrize("behaviour", ["fails", "dies"])
def test_a_training_does_not_mind_a_tracker(small_data, tmp_path, with_library, behaviour):
    settings = settings_of(small_data, tmp_path / "run", SOLVER__MAX_ITER=4)
    run = Forked(settings, log=tmp_path / "log.txt", before=partial(with_library, behaviour))
    assert run.wait() == 0
    assert run.log.read_text().count("the training goes on") == 1
    assert (tmp_path / "run" / "model_final.pth").exists()


def test_a_run_that_leaves_lets_its_tracker_finish(small_data, tmp_path, with_library):
    output = tmp_path / "run"
    settings = settings_of(small_data, output, SOLVER__MAX_ITER=400, DATALOADER__NUM_WORKERS=1)
    run = Forked(settings, log=tmp_path / "log.txt", before=with_library)
    run.wait_for(output / "metrics.jsonl", '"iteration": 6')
    run.signal(signal.SIGTERM)
    assert run.wait() == 75, run.log.read_text()
    assert "wandb: not done" not in run.log.read_text()
    assert calls(output)[-1] == ["finish", 1]


def _without_library():
    sys.modules["trackio"] = None


def test_what_is_missing_is_said_before_anything_else(small_data, tmp_path):
    settings = small_settings(small_data, tmp_path / "run", LOG__TRACKERS="[trackio]")
    run = Forked(settings, log=tmp_path / "log.txt", before=_without_library)
    assert run.wait() == 2
    (line,) = run.log.read_text().splitlines()
    assert line == "error: LOG.TRACKERS trackio: trackio is not installed; pip install 'lgd[trackio]'"
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_pictures_of_each_evaluation(small_data, tmp_path):
    output = tmp_path / "run"
    settings = small_settings(
        small_data, output, LOG__FIGURES=True, TEST__EVAL_PERIOD=4, SOLVER__MAX_ITER=8, TEST__VIS_IMAGES=0
    )
    run = Forked(settings, log=tmp_path / "log.txt")
    assert run.wait() == 0, run.log.read_text()
    events = EventAccumulator(str(output), size_guidance={"images": 0})
    events.Reload()
    steps = {tag.split("/")[0]: [each.step for each in events.Images(tag)] for tag in events.Tags()["images"]}
    assert steps == {"precision_recall": [4, 8], "confusion": [4, 8], "confusion_teacher": [4, 8]}
