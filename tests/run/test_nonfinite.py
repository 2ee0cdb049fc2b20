"""Runs that meet losses which are no numbers: what is told, counted and kept, and after a kill."""

import os
import re
import signal
from functools import partial

import pytest
import torch

from lgd import exits
from lgd.distill.distiller import LabelGuidedDistiller
from lgd.run.evaluations import TrainingEvaluations
from tests.forked import Forked
from tests.test_resume import assert_same_run, kill_ranks_when, run_ranks
from tests.training import read_metrics, small_settings

SEED = 5


def settings_of(data, output, action, **changes):
    return small_settings(data, output, TRAIN__ON_NONFINITE=action, TRAIN__EMA__ENABLED=True, **changes)


def spoil(steps, rank=0):
    """Let the losses of these steps, counted from 0, be NaN on one rank."""
    forward = LabelGuidedDistiller.forward

    def forward_or_fail(self, batch, **how):
        losses = forward(self, batch, **how)
        # The engine seeds every step and rank from its numbers, which are read back here.
        step, at = divmod(torch.initial_seed(), 65_537)
        if step - SEED * 1_000_003 in steps and at == rank:
            losses["loss_cls"] = losses["loss_cls"] * float("nan")
        return losses

    LabelGuidedDistiller.forward = forward_or_fail


def run_alone(settings, log, *flags, before):
    run = Forked(settings, *flags, log=log, before=before)
    return run.wait(), run.log.read_text()


@pytest.fixture(scope="module")
def straight(small_data, tmp_path_factory):
    """Finished runs by what they do about steps 4 and 7; checkpoints are at 3, 6, 9 and 12."""
    folder = tmp_path_factory.mktemp("straight")
    for action in ("skip", "rollback"):
        settings = settings_of(small_data, folder / action, action)
        code, text = run_alone(settings, folder / "out", before=partial(spoil, (4, 7)))
        assert code == 0, text
    return folder


def lines_of(output):
    return [line for line in (output / "log.txt").read_text().splitlines() if "non-finite" in line]


@pytest.mark.parametrize("action", ["skip", "rollback"])
def test_it_is_counted_and_the_images_are_named(straight, action):
    output = straight / action
    counts = [line["skipped_steps"] for line in read_metrics(output) if "total_loss" in line]
    assert counts == [0, 0, 1, 2, 2, 2]
    done = {"skip": ["left out"] * 2, "rollback": [f"back to the weights of step {step}" for step in (3, 6)]}
    lines = lines_of(output)
    assert len(lines) == 2
    for number, (step, line) in enumerate(zip((4, 7), lines, strict=True)):
        assert re.search(
            rf"non-finite loss at step {step}: loss_cls = nan, total_loss = nan; images "
            rf"(\d+ \(\S+\.\w+\)(, )?){{4}}; {done[action][number]}, {number + 1} in all$",
            line,
        ), line
    final = torch.load(output / "model_final.pth", weights_only=True)["model"]
    assert all(torch.isfinite(x).all() for x in final.values())


@pytest.mark.parametrize(
    ("how", "action"),
    [
        ("left", "skip"),
        ("killed", "rollback"),
        pytest.param("left", "rollback", marks=pytest.mark.slow),
        pytest.param("killed", "skip", marks=pytest.mark.slow),
    ],
)
def test_a_resumed_run_is_bit_equal(small_data, tmp_path, straight, action, how):
    """Killed after step 8, from checkpoint 6; or left after step 7 with a checkpoint that was not due."""
    settings = settings_of(small_data, tmp_path, action)
    number, step = (signal.SIGKILL, 8) if how == "killed" else (signal.SIGTERM, 6)
    code, text = run_alone(settings, tmp_path / "out", before=partial(spoil_and_stop, number, step))
    assert code == (-number if how == "killed" else exits.RUN_AGAIN), text
    code, text = run_alone(settings, tmp_path / "out", "--resume", before=partial(spoil, (4, 7)))
    assert code == 0, text
    assert_same_run(straight / action, tmp_path)


def spoil_and_stop(number, step):
    spoil((4, 7))
    after_step = TrainingEvaluations.after_step

    def after_step_and_stop(self, leaves):
        after_step(self, leaves)
        if self._state.step == step:
            os.kill(os.getpid(), number)

    TrainingEvaluations.after_step = after_step_and_stop


@pytest.mark.slow
@pytest.mark.parametrize("action", ["skip", "rollback"])
def test_two_ranks_killed_and_resumed(small_data, tmp_path, action):
    """Rank 1 alone has the bad loss."""
    bad = partial(spoil, (4, 7), rank=1)
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    for folder in (straight, killed):
        folder.mkdir()
    run_ranks(settings_of(small_data, straight, action), straight, before=bad)
    settings = settings_of(small_data, killed, action)
    kill_ranks_when(settings, killed, killed / "metrics.jsonl", '"iteration": 8', before=bad)
    run_ranks(settings, killed, "--resume", before=bad)
    assert_same_run(straight, killed)
    first, second = lines_of(straight)
    assert "non-finite loss at step 4: " in first
    assert len(re.findall(r"\.(?:png|jpg)\)", second)) == 2, "rank 1's images, not rank 0's"


@pytest.mark.parametrize("action", ["abort", "skip", "rollback"])
def test_too_many_end_the_run_in_a_line(small_data, tmp_path, action):
    settings = settings_of(small_data, tmp_path / "run", action, TRAIN__MAX_NONFINITE=2)
    code, text = run_alone(settings, tmp_path / "out", before=partial(spoil, (4, 5, 6, 7)))
    if action == "rollback":  # the checkpoint of step 6 begins a new count
        assert code == 0, text
        return
    assert code == exits.USER_ERROR, text
    last = text.strip().splitlines()[-1]
    step = {"abort": 4, "skip": 6}[action]
    assert last.startswith(f"error: non-finite loss at step {step}: loss_cls = nan"), last
    assert ("left out before it: 2 such steps (TRAIN.MAX_NONFINITE)" in last) == (action == "skip")
    assert "--resume goes on from step" in last
    assert "Traceback" not in text
