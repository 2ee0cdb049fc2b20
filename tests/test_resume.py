"""A killed run that is resumed ends exactly as one that was never interrupted."""

import contextlib
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from tests.forked import Forked, start_ranks
from tests.training import descendants, read_metrics, run_to_end, small_settings, start

TWO_RANKS = ("--num-gpus", "2")


def final_model(output):
    return torch.load(Path(output) / "model_final.pth", weights_only=True)["model"]


def kill_when(settings, output, reached, *flags):
    """Start a launcher and its ranks, and SIGKILL all its processes as soon as `reached(metrics text)`."""
    process = start(settings, *flags)
    metrics = Path(output) / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while process.poll() is None and time.monotonic() < deadline:
        if metrics.exists() and reached(metrics.read_text()):
            break
        time.sleep(0.005)
    alive = process.poll() is None
    if alive:
        # The workers first, which lead sessions of their own: they notice when their launcher dies.
        for process_id in [*descendants(process.pid), process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process_id, signal.SIGKILL)
    process.communicate()
    return alive


def assert_same_run(one, other):
    assert read_metrics(one) == read_metrics(other)
    expected, got = final_model(one), final_model(other)
    assert expected.keys() == got.keys()
    for name, value in expected.items():
        assert torch.equal(value, got[name]), name


@pytest.fixture(scope="module")
def uninterrupted(small_data, tmp_path_factory):
    """A finished run of two ranks."""
    output = tmp_path_factory.mktemp("uninterrupted")
    run_ranks(small_settings(small_data, output), output)
    return output


def run_ranks(settings, folder, *flags, before=None):
    """Run two ranks to the end; return what the first says."""
    ranks = start_ranks(settings, *flags, folder=folder, before=before)
    assert [rank.wait() for rank in ranks] == [0, 0]
    return ranks[0].log.read_text()


def kill_ranks_when(settings, folder, path, text, before=None):
    """Start two ranks and SIGKILL both as soon as a file holds `text`."""
    ranks = start_ranks(settings, folder=folder, before=before)
    ranks[0].wait_for(path, text)
    for rank in ranks:
        rank.signal(signal.SIGKILL)
    first, second = (rank.wait() for rank in ranks)
    assert first == -signal.SIGKILL
    assert second != 0  # it may have noticed before its own signal came


def test_killed_and_resumed_run_is_bit_equal(small_data, tmp_path, uninterrupted):
    settings = small_settings(small_data, tmp_path)
    kill_ranks_when(settings, tmp_path, tmp_path / "metrics.jsonl", '"iteration": 4')
    assert "resumed from" in run_ranks(settings, tmp_path, "--resume")
    assert_same_run(uninterrupted, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("trial", range(4))
def test_killed_at_any_moment_twice(small_data, tmp_path, uninterrupted, trial):
    settings = small_settings(small_data, tmp_path)
    chance = random.Random(trial)
    for flags in ((), ("--resume",)):
        step = chance.choice([2, 4, 6, 8])
        delay = chance.uniform(0, 0.3)
        kill_when(
            settings, tmp_path,
            lambda text, step=step, delay=delay: f'"iteration": {step}' in text and not time.sleep(delay),
            *flags, *TWO_RANKS,
        )  # fmt: skip
    run_to_end(settings, "--resume", *TWO_RANKS)
    assert_same_run(uninterrupted, tmp_path)


def test_damaged_newest_checkpoint_falls_back_and_still_ends_equal(small_data, tmp_path, uninterrupted):
    settings = small_settings(small_data, tmp_path)
    kill_ranks_when(settings, tmp_path, tmp_path / "checkpoints" / "step_0000006.json", "sha256")
    newest = max((tmp_path / "checkpoints").glob("step_*.pth"))
    newest.write_bytes(newest.read_bytes()[:-100])
    text = run_ranks(settings, tmp_path, "--resume")
    assert f"damaged checkpoint passed over: {newest}" in text
    assert_same_run(uninterrupted, tmp_path)


def run_alone(settings, log, *flags):
    run = Forked(settings, *flags, log=log)
    assert run.wait() == 0, run.log.read_text()
    return run.log.read_text()


EVERYTHING = (
    "[{NAME: large_scale_jitter, PROBABILITY: 0.5, SCALE: [0.5, 1.5]}, {NAME: mosaic}, {NAME: copy_paste}, "
    "{NAME: quarter_turn}, {NAME: vertical_flip}, {NAME: cut_out}, {NAME: color_jitter, HUE: [-0.1, 0.1]}]"
)


def test_a_killed_run_with_augmentations_is_bit_equal(small_data, tmp_path):
    changes = {"INPUT__AUGMENTATIONS": EVERYTHING, "SOLVER__MAX_ITER": 6, "DATALOADER__NUM_WORKERS": 1}
    run_alone(small_settings(small_data, tmp_path / "whole", **changes), tmp_path / "whole.txt")
    settings = small_settings(small_data, tmp_path / "killed", **changes)
    run = Forked(settings, log=tmp_path / "killed.txt")
    run.wait_for(tmp_path / "killed" / "metrics.jsonl", '"iteration": 4')
    run.signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    assert "resumed from" in run_alone(settings, tmp_path / "resumed.txt", "--resume")
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_resume_of_a_finished_run_evaluates_only(small_data, tmp_path):
    settings = small_settings(small_data, tmp_path / "run", SOLVER__MAX_ITER=3)
    run_alone(settings, tmp_path / "first.txt")
    before = final_model(tmp_path / "run")
    assert "nothing left to train" in run_alone(settings, tmp_path / "second.txt", "--resume")
    assert all(torch.equal(value, before[name]) for name, value in final_model(tmp_path / "run").items())


def test_an_earlier_run_is_set_aside(small_data, tmp_path):
    output = tmp_path / "run"
    settings = small_settings(small_data, output, SOLVER__MAX_ITER=2)
    run_alone(settings, tmp_path / "first.txt")
    assert "held an earlier run" in run_alone(settings, tmp_path / "second.txt")
    (aside,) = output.glob("earlier-*")
    assert (aside / "model_final.pth").exists()
    assert (aside / "metrics.jsonl").exists()
    assert len(list(output.glob("events.out.tfevents.*"))) == 1


@pytest.mark.parametrize(
    "setting", [{"HEAD__MODE": "averaged"}, {"LABEL_ENCODER__CATEGORY_FORMAT": "embedding"}]
)
def test_what_the_distiller_keeps_goes_on_to_the_bit(small_data, tmp_path, setting):
    """What stands in for the head under the teacher's features is no part of the model, and is saved too."""
    changes = {f"MODEL__DISTILLATOR__{key}": value for key, value in setting.items()}
    changes["SOLVER__MAX_ITER"] = 6
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run_alone(small_settings(small_data, whole, **changes), tmp_path / "whole.txt")
    settings = small_settings(small_data, parts, **changes)
    first = Forked(settings, log=tmp_path / "first.txt")
    first.wait_for(parts / "checkpoints" / "step_0000003.json", "sha256")
    first.signal(signal.SIGKILL)
    first.wait()
    assert "resumed from" in run_alone(settings, tmp_path / "second.txt", "--resume")
    assert_same_run(whole, parts)
    names = final_model(parts)
    assert not [name for name in names if "slow" in name]
    assert ("teacher.category_embedding.weight" in names) == ("LABEL_ENCODER__CATEGORY_FORMAT" in setting)
