"""What the training loop does by itself; whole runs are in tests/test_train.py and tests/test_resume.py."""

import pytest
import torch

from lgd.engine.loop import LoopOptions, TrainState, _finish_step, _seed_step
from lgd.ranks.interruption import Interrupted
from lgd.ranks.watch import Watch


@pytest.mark.parametrize("seed", [0, 5, 2**31 - 2])
def test_every_step_draws_differently_and_the_same_again(seed):
    draws = []
    for step in (0, 1, 270_000, 0):
        _seed_step(seed, step)
        draws.append(float(torch.rand(())))
    assert len(set(draws)) == 3
    assert draws[0] == draws[3]


def finish(state, *, evaluate=None, leave=False, **options):
    """Call `_finish_step` and return what it did, in order."""
    done = []

    def evaluate_or_leave(_):
        done.append("evaluate")
        if evaluate:
            raise evaluate

    def save(state, leaves):
        done.append(f"save, {'owing' if state.owes_evaluation else 'nothing owed'}")

    options = LoopOptions(images_per_step=1, **options)
    try:
        _finish_step(state, options, evaluate_or_leave, save, lambda: leave, Watch())
    except Interrupted as reason:
        done.append(str(reason))
    return done


def make_state(step, owes_evaluation=False):
    return TrainState(model=None, sides=[], progress=None, step=step, owes_evaluation=owes_evaluation)


def test_a_step_ends_with_what_is_due():
    assert finish(make_state(3), max_iter=8, checkpoint_period=4) == []
    assert finish(make_state(4), max_iter=8, checkpoint_period=4) == ["save, nothing owed"]
    assert finish(make_state(5, owes_evaluation=True), max_iter=8, checkpoint_period=4) == ["evaluate"]


def test_a_run_that_is_asked_to_leave_saves_once():
    for step in (3, 4):
        expected = ["save, nothing owed", f"asked to leave: saved step {step} of 8"]
        assert finish(make_state(step), leave=True, max_iter=8, checkpoint_period=4) == expected


def test_an_abandoned_evaluation_is_owed_also_at_the_last_step():
    for step in (4, 8):
        expected = ["evaluate", "save, owing", f"asked to leave: saved step {step} of 8"]
        state = make_state(step, owes_evaluation=True)
        assert finish(state, evaluate=Interrupted("now"), max_iter=8, checkpoint_period=3) == expected


def test_the_last_step_is_finished_whoever_asks_to_leave():
    state = make_state(8, owes_evaluation=True)
    assert finish(state, leave=True, max_iter=8) == ["evaluate", "save, nothing owed"]
