"""What is made again in the backward pass: the same numbers, nothing kept, and no more than is read there."""

import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lgd.layers.conv import Conv2d
from lgd.layers.recompute import cheaply_recomputed, feed_recomputed, recomputed


def kept_and_gradients(call, *arguments):
    """What `call` of them keeps beside them, its value and the gradients."""
    arguments = [x.clone().requires_grad_() for x in arguments]
    own, kept = {x.data_ptr() for x in arguments}, []

    def keep(tensor):
        if tensor.data_ptr() not in own:
            kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        value = call(*arguments)
    return kept, value, torch.autograd.grad(value.square().sum(), arguments)


def norm_and_multiply(x, y):
    return F.relu(F.group_norm(x, 1)) @ y


@pytest.mark.parametrize("recompute", [recomputed, cheaply_recomputed])
def test_the_same_bits_and_nothing_kept(recompute):
    x, y = torch.randn(2, 64, 4096), torch.randn(4096, 3)
    kept, value, gradients = kept_and_gradients(norm_and_multiply, x, y)
    again, same, others = kept_and_gradients(lambda *xs: recompute(norm_and_multiply, *xs), x, y)
    assert len(kept) > 1
    assert [tensor for tensor in again if tensor is not same] == []
    assert torch.equal(value, same)
    assert all(map(torch.equal, gradients, others))


def test_what_is_small_is_kept():
    x, y = torch.randn(2, 4, 6), torch.randn(6, 3)
    kept, value, gradients = kept_and_gradients(norm_and_multiply, x, y)
    also, same, others = kept_and_gradients(lambda *xs: cheaply_recomputed(norm_and_multiply, *xs), x, y)
    assert len(kept) == len(also)
    assert all(map(torch.equal, [value, *gradients], [same, *others]))


def test_the_last_product_is_not_made_again():
    calls = []

    def count(x):
        calls.append("norm")
        x = F.relu(F.group_norm(x, 1)) @ torch.ones(6, 3)
        calls.append("product")
        return x

    recomputed(count, torch.randn(2, 4, 6, requires_grad=True)).sum().backward()
    assert calls == ["norm", "product", "norm"]


def test_without_gradients_it_is_a_call():
    with torch.no_grad():
        assert recomputed(norm_and_multiply, torch.ones(1, 2, 2), torch.ones(2, 2)).grad_fn is None


def test_compiled_code_decides_by_itself():
    def call(x, y):
        return cheaply_recomputed(norm_and_multiply, x, y)

    graphs = []

    def look(graph, _):
        graphs.append(str(graph.graph))
        return graph

    x, y = torch.randn(2, 4, 6, requires_grad=True), torch.randn(6, 3)
    torch.testing.assert_close(torch.compile(call, backend=look)(x, y), call(x, y))
    assert len(graphs) == 1
    assert "checkpoint" not in graphs[0]
    torch._dynamo.reset()


class Consumer(nn.Module):
    """A convolution that counts its calls."""

    def __init__(self, winograd):
        super().__init__()
        torch.manual_seed(0)
        self.conv = Conv2d(128, 128, 3, padding=1)
        self.conv.winograd = winograd
        self.num_calls = 0

    def forward(self, x):
        self.num_calls += 1
        return self.conv(x)


@pytest.mark.parametrize("winograd", [False, True])
@pytest.mark.parametrize("mixed", [False, True])
def test_what_a_convolution_is_fed_is_not_kept(winograd, mixed):
    consumer, made = Consumer(winograd), []
    x = torch.randn(2, 128, 40, 40, requires_grad=True)

    def norm_and_relu(x):
        result = F.relu(F.group_norm(x, 1))
        made.append(weakref.ref(result.untyped_storage()))
        return result

    def differentiate(call):
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            before = consumer.conv(x)
            value = call(before)
        return value, torch.autograd.grad(value.float().square().sum(), [x, *consumer.parameters()])

    value, gradients = differentiate(lambda before: feed_recomputed(consumer, norm_and_relu, before))
    assert consumer.num_calls == 1
    expected, others = differentiate(lambda before: consumer.conv(norm_and_relu(before)))
    assert torch.equal(value, expected)
    assert all(map(torch.equal, gradients, others))
    made.clear()
    value = feed_recomputed(consumer, norm_and_relu, x)
    assert value.requires_grad
    assert [each() for each in made] == [None]
    made.clear()
    value = feed_recomputed(consumer, norm_and_relu, x[..., :4])  # of which little is to be had
    assert value.requires_grad
    assert [each() for each in made] != [None]


def test_fed_without_gradients():
    with torch.no_grad():
        value = feed_recomputed(Consumer(False), F.relu, torch.randn(1, 128, 4, 4))
    assert value.grad_fn is None
