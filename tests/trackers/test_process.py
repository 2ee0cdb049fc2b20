"""A tracker in a process of its own: what it gets, and that nothing it does disturbs the training."""

import logging
import os
import time

import pytest
import torch

from lgd.trackers import process
from lgd.trackers.process import TrackerProcess
from lgd.trackers.tracker import Log
from tests.trackers.fakes import calls, install, rows

SCALARS = [("student", "loss/total_loss", 1.5), ("teacher", "loss/loss_cls", 0.25)]


@pytest.fixture
def said(caplog):
    """What the trainer logs of it."""
    caplog.set_level(logging.INFO, "lgd")
    logging.getLogger("lgd").propagate = True
    return lambda level: [record.getMessage() for record in caplog.records if record.levelname == level]


def track(output, *steps, finished=True, seconds=30.0):
    tracker = TrackerProcess("wandb", output, Log(project="cells", settings="SOLVER:\n  STEPS: [8]\n"))
    for step in steps:
        tracker.add_scalars(step, SCALARS)
    tracker.close(seconds, finished=finished)
    assert tracker._process.returncode is not None
    return tracker


def test_what_it_gets(tmp_path, monkeypatch, said):
    install(tmp_path / "library", monkeypatch)
    tracker = TrackerProcess("wandb", tmp_path / "run", Log(project="cells", settings="LOG_PERIOD: 2\n"))
    tracker.add_scalars(2, SCALARS)
    tracker.add_scalars(2, [])
    tracker.add_text("phase", "distill", 2)
    tracker.add_images("validation_images/val", 2, [torch.zeros(3, 4, 6, dtype=torch.uint8)] * 2)
    tracker.close(30.0, finished=True)
    (begin, options), *told, end = calls(tmp_path / "run")
    assert (begin, options["project"], options["name"]) == ("init", "cells", "run")
    assert (options["config"], options["mode"]) == ({"LOG_PERIOD": 2}, "offline")
    assert [facts for _, facts in told] == [
        {"step": 2, "loss/total_loss": 1.5, "loss/loss_cls/teacher": 0.25},
        {"step": 2, "phase": "distill"},
        {"step": 2, "validation_images/val/0": [4, 6, 3], "validation_images/val/1": [4, 6, 3]},
    ]
    assert end == ["finish", 0]
    (line,) = said("INFO")
    assert line.startswith(f"wandb: begins run {options['id']}, offline in ")
    assert said("WARNING") == []


def test_a_resume_goes_on_in_the_same_run_and_tells_nothing_twice(tmp_path, monkeypatch, said):
    install(tmp_path / "library", monkeypatch)
    track(tmp_path / "run", 2, 4, 6, finished=False)
    track(tmp_path / "run", 4, 6, 8)
    assert [row["step"] for row in rows(tmp_path / "run")] == [2, 4, 6, 8]
    begun = [facts["id"] for call, facts in calls(tmp_path / "run") if call == "init"]
    assert len(begun) == 2
    assert len(set(begun)) == 1
    assert [facts for call, facts in calls(tmp_path / "run") if call == "finish"] == [1, 0]
    assert "wandb: goes on with run " in said("INFO")[1]


def test_a_library_that_fails_is_one_warning(tmp_path, monkeypatch, said):
    install(tmp_path / "library", monkeypatch, "fails")
    begin = time.monotonic()
    track(tmp_path / "run", 2, 4)
    assert time.monotonic() - begin < 15
    (line,) = said("WARNING")
    assert line == "wandb: no server there nor here; the training goes on, tried again every 30 s"


def test_without_its_server_it_writes_offline(tmp_path, monkeypatch, said):
    install(tmp_path / "library", monkeypatch, "fails online")
    monkeypatch.setenv("FAKE_KEY", "secret")
    track(tmp_path / "run", 2)
    assert calls(tmp_path / "run")[0][1]["mode"] == "offline"
    assert "(no server there nor here); wandb sync sends it" in said("INFO")[0]


def test_a_question_is_no_question(tmp_path, monkeypatch, said):
    install(tmp_path / "library", monkeypatch, "asks")
    track(tmp_path / "run", 2)
    (line,) = said("WARNING")
    assert line.startswith("wandb: EOF when reading a line; the training goes on")


def test_a_library_that_dies_is_one_warning(tmp_path, monkeypatch, said):
    install(tmp_path / "library", monkeypatch, "dies")
    tracker = TrackerProcess("wandb", tmp_path / "run", Log())
    tracker.add_scalars(2, SCALARS)
    tracker._process.wait(30)
    tracker._listener.join(30)
    tracker.add_scalars(4, SCALARS)
    tracker.close(30.0, finished=True)
    assert said("WARNING") == ["wandb: its process ended with code 3; the training goes on without it"]


def test_a_library_that_hangs_holds_nothing_up(tmp_path, monkeypatch, said):
    install(tmp_path / "library", monkeypatch, "hangs")
    monkeypatch.setattr(process, "MOST_BYTES", 10_000_000)
    tracker = TrackerProcess("wandb", tmp_path / "run", Log())
    image, begin = torch.zeros(3, 1000, 1000, dtype=torch.uint8), time.monotonic()
    for step in range(12):
        tracker.add_images("images", step, [image])
    tracker.close(30.0, finished=True)
    assert time.monotonic() - begin < 3
    (line,) = said("WARNING")
    assert "wandb: does not keep up, " in line


def test_the_end_waits_only_so_long(tmp_path, monkeypatch, said):
    install(tmp_path / "library", monkeypatch, "hangs")
    begin = time.monotonic()
    track(tmp_path / "run", 2, seconds=0.5)
    assert time.monotonic() - begin < 3
    assert said("WARNING") == ["wandb: not done in 0 s; what it had not taken is lost"]


def test_a_run_that_begins_anew_is_another_one(tmp_path, monkeypatch):
    from lgd.run.output import set_earlier_run_aside

    install(tmp_path / "library", monkeypatch)
    track(tmp_path / "run", 2)
    first = calls(tmp_path / "run")[0][1]["id"]
    set_earlier_run_aside(tmp_path / "run")
    track(tmp_path / "run", 2)
    assert calls(tmp_path / "run")[0][1]["id"] != first
    assert [row["step"] for row in rows(tmp_path / "run")] == [2]


def test_the_process_is_no_child_of_the_terminal(tmp_path, monkeypatch):
    install(tmp_path / "library", monkeypatch)
    tracker = TrackerProcess("wandb", tmp_path / "run", Log())
    assert os.getsid(tracker._process.pid) == tracker._process.pid
    tracker.close(30.0, finished=True)
