"""What the training loop does by itself; whole runs are in tests/test_train.py and tests/test_resume.py."""

import pytest
import torch

from lgd.engine.loop import _seed_step


@pytest.mark.parametrize("seed", [0, 5, 2**31 - 2])
def test_every_step_draws_differently_and_the_same_again(seed):
    draws = []
    for step in (0, 1, 270_000, 0):
        _seed_step(seed, step)
        draws.append(float(torch.rand(())))
    assert len(set(draws)) == 3
    assert draws[0] == draws[3]
