"""The trial step before training, and the search for the largest batch."""

import pytest
import torch

from lgd.engine.loop import Side
from lgd.memory.trial_step import fits_memory, largest_batch


class Model(torch.nn.Module):
    """Advances batch-norm statistics, draws at random, and fails as it is told."""

    def __init__(self, error=None):
        super().__init__()
        self.linear = torch.nn.Linear(3, 3)
        self.norm = torch.nn.BatchNorm1d(3)
        self.error = error
        self.calls = []

    def forward(self, batch, *, distill):
        self.calls.append(distill)
        x = self.norm(self.linear(torch.rand(4, 3)))
        if self.error:
            raise self.error
        return {"loss": x.square().mean(), "other": x.mean()}


class NoBatch:
    def to(self, device):
        return self


def trial(model):
    sides = [Side("student", torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), None)]
    return fits_memory(model, sides, NoBatch(), device=torch.device("cpu"), mixed_precision=False)


@pytest.mark.parametrize(
    "error",
    [
        None,
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ..."),
    ],
)
def test_nothing_is_changed_whether_it_fits_or_not(error):
    model = Model(error)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random_state = torch.get_rng_state()
    assert trial(model) is (error is None)
    assert model.calls == [True]
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_other_errors_are_raised():
    with pytest.raises(RuntimeError, match="shapes"):
        trial(Model(RuntimeError("shapes do not match")))


@pytest.mark.parametrize("most", [0, 1, 2, 3, 7, 8, 9, 31, 32, 100])
def test_largest_batch(most):
    tried = []

    def fits(size):
        tried.append(size)
        return size <= most

    assert largest_batch(fits, limit=64) == min(most, 64)
    assert len(tried) == len(set(tried))
    assert max(tried) <= 64


def test_largest_batch_looks_at_few():
    tried = []
    largest_batch(lambda size: tried.append(size) or size <= 700)
    assert len(tried) <= 20
