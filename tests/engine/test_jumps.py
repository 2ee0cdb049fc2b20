import logging
import random

import pytest
import torch

from lgd.engine.jumps import JumpWatch
from lgd.engine.progress import Progress


def wobbling(count, level=2.0):
    chance = random.Random(0)
    return [level + chance.gauss(0, 0.2) for _ in range(count)]


def test_a_jump_is_told_from_wobbling():
    watch = JumpWatch(10)
    assert watch.look(wobbling(1000)) == []
    (jump,) = watch.look([2.1, 9.0, 1.9])
    assert (jump.index, jump.value) == (1, 9.0)
    assert jump.median == pytest.approx(2.0, abs=0.1)
    assert jump.deviations > 10


def test_by_hand():
    """Median 2, absolute deviations 0 and 1 with median 1."""
    watch = JumpWatch(5)
    watch.look([1.0, 2.0, 3.0] * 10)
    assert watch.look([7.0]) == []
    (jump,) = watch.look([7.1])
    assert jump.deviations == pytest.approx(5.1)


def test_first_losses_falls_and_a_new_level_are_none():
    watch = JumpWatch(20)
    assert watch.look([1.0] * 19 + [100.0]) == []
    watch = JumpWatch(20)
    assert watch.look([100 / (step + 1) for step in range(200)]) == []
    watch = JumpWatch(20)
    jumps = watch.look(wobbling(200) + wobbling(200, level=8.0))
    assert 0 < len(jumps) <= 60
    assert jumps[-1].index < 260


def test_nearly_constant_losses_may_rise_a_little():
    watch = JumpWatch(20)
    watch.look([1.0] * 50)
    assert watch.look([1.19]) == []
    assert len(watch.look([1.21])) == 1


def test_off():
    watch = JumpWatch(0)
    assert watch.look([1.0] * 50 + [1e9]) == []
    assert not watch.recent


def feed(progress, values):
    for step, value in enumerate(values):
        losses = {"loss_cls": torch.tensor(1.0), "total_loss": torch.tensor(value)}
        progress.add(step, losses, [step, 1000 + step], 0)


def test_the_run_is_told_once_a_period(caplog):
    progress = Progress(torch.device("cpu"), loss_jump=20, name_images=lambda ids: f"<{ids}>")
    feed(progress, [*wobbling(60), 500.0, 2.0, 900.0])
    assert not caplog.messages
    with caplog.at_level(logging.WARNING):
        progress.averages()
    (line,) = caplog.messages
    assert line.startswith("the loss jumped at step 62: 900, ")
    assert line.endswith("images <[62, 1062]>, 1 more of these 63 steps")


def test_what_is_recent_goes_on_after_a_resume(caplog):
    progress = Progress(torch.device("cpu"), loss_jump=20)
    feed(progress, wobbling(60))
    resumed = Progress(torch.device("cpu"), loss_jump=20)
    resumed.load_state(progress.state())
    feed(resumed, [900.0])
    resumed.averages()
    assert "the loss jumped at step 0" in caplog.text
