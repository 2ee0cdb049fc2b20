"""How the links between nodes are measured, with times that are made up."""

import itertools

import pytest
import torch
from torch import distributed as dist

from lgd.preflight.collectives import _Wire


class SlowWire(_Wire):
    """Takes the time that its link would take, and on a busy host now and then 0.2 s more."""

    def __init__(self, *, latency, bandwidth, is_busy):
        super().__init__(1, torch.device("cpu"), largest=2**23)
        self.latency, self.bandwidth = latency, bandwidth
        self.delays = itertools.cycle([0.2, 0.0, 0.3] if is_busy else [0.0])

    def _exchange(self, size):
        return 2 * self.latency + size / self.bandwidth + next(self.delays)


@pytest.mark.parametrize("is_busy", [False, True])
@pytest.mark.parametrize("bandwidth", [2e5, 1e8, 5e9])
@pytest.mark.parametrize("latency", [1e-4, 3e-2])
def test_a_busy_host_is_no_slow_link(monkeypatch, latency, bandwidth, is_busy):
    monkeypatch.setattr(dist, "send", lambda *_: None)
    wire = SlowWire(latency=latency, bandwidth=bandwidth, is_busy=is_busy)
    found_latency, found_bandwidth = wire.measure(0.5)
    assert found_latency == pytest.approx(latency, rel=0.05)
    # Where a message takes no longer than the way there and back, no more than its order can be told.
    assert bandwidth / 20 < found_bandwidth < 1.01 * bandwidth
    if latency < 1e-3:
        assert found_bandwidth == pytest.approx(bandwidth, rel=0.01)
