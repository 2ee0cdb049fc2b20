import math

import pytest
import torch

from lgd.ops.averaging import move_averages, warmed_up_decay


def test_the_decay_warms_up():
    assert warmed_up_decay(0.9, 3, 0) == 0.9
    assert warmed_up_decay(0.9, 2, 4) == pytest.approx(0.9 * (1 - math.exp(-0.5)), rel=1e-12)
    assert warmed_up_decay(0.9998, 10**6, 2000) == 0.9998


def test_averages_move_by_what_the_decay_leaves():
    averages = [torch.tensor([1.0, 2.0]), torch.tensor([[4.0]])]
    move_averages(averages, [torch.tensor([3.0, 2.0]), torch.tensor([[0.0]])], 0.75)
    assert averages[0].tolist() == [1.5, 2.0]
    assert averages[1].tolist() == [[3.0]]
    move_averages([], [], 0.5)


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.9998])
def test_what_does_not_change_stays_to_the_bit(decay):
    value = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    average = value.clone()
    move_averages([average], [value], decay)
    assert torch.equal(average, value)
