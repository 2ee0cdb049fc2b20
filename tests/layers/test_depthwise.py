import pytest
import torch
import torch.nn.functional as F

from lgd.layers.conv import Conv2d, ConvNorm
from lgd.layers.depthwise import depthwise_conv, depthwise_pays


def channels_last(x):
    return x.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("kernel", [(5, 5), (3, 7), (2, 4), (1, 6)])
@pytest.mark.parametrize(("stride", "padding"), [((1, 1), (2, 2)), ((2, 2), (0, 0)), ((1, 2), (0, 3))])
def test_narrow_kernels_give_the_gradients_of_a_wide_one(kernel, stride, padding):
    x = channels_last(torch.randn(2, 6, 11, 9).double()).requires_grad_()
    weight, bias = (
        torch.randn(6, 1, *kernel).double().requires_grad_(),
        torch.randn(6).double().requires_grad_(),
    )
    ours = depthwise_conv(x, weight, bias, stride, padding)
    theirs = F.conv2d(x, weight, bias, stride, padding, groups=6)
    assert torch.equal(ours, theirs)
    slope = torch.randn_like(ours)
    for a, b in zip(*(torch.autograd.grad(y, (x, weight, bias), slope) for y in (ours, theirs)), strict=True):
        assert torch.allclose(a, b, atol=1e-12)


def test_a_frozen_map_and_no_bias_get_no_gradient():
    x, weight = channels_last(torch.randn(2, 4, 6, 6)), torch.randn(4, 1, 5, 5, requires_grad=True)
    found = depthwise_conv(x, weight, None, (1, 1), (2, 2))
    found.sum().backward()
    assert x.grad is None
    (expected,) = torch.autograd.grad(F.conv2d(x, weight, padding=2, groups=4).sum(), weight)
    assert torch.allclose(weight.grad, expected, atol=1e-4)


def distance(found, expected):
    """Of two tensors, as a share of the second's length."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("kernel", [(5, 5), (3, 3)])
@pytest.mark.parametrize("stride", [(1, 1), (2, 2)])
@pytest.mark.parametrize("is_lower", [False, True], ids=["float32 in", "bfloat16 in"])
def test_under_autocast_it_rounds_like_torch(kernel, stride, is_lower):
    x = channels_last(torch.randn(2, 6, 11, 9))
    x = (x.bfloat16() if is_lower else x).requires_grad_()
    weight, bias = torch.randn(6, 1, *kernel, requires_grad=True), torch.randn(6, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        ours = depthwise_conv(x, weight, bias, stride, (1, 1))
        theirs = F.conv2d(x, weight, bias, stride, (1, 1), groups=6)
    assert ours.dtype == torch.bfloat16
    assert torch.equal(ours, theirs)
    slope = torch.randn_like(ours)
    exact = F.conv2d(x.double(), weight.double(), bias.double(), stride, (1, 1), groups=6)
    found, reference, expected = (
        torch.autograd.grad(y, (x, weight, bias), slope.to(y)) for y in (ours, theirs, exact)
    )
    for a, b, c in zip(found, reference, expected, strict=True):
        assert a.dtype == b.dtype
        assert distance(a, c) < 1.5 * distance(b, c) + 1e-3


def test_it_is_taken_for_wide_kernels_that_train():
    x, weight = channels_last(torch.randn(2, 4, 6, 6)), torch.randn(4, 1, 5, 5, requires_grad=True)
    assert depthwise_pays(x, weight, (1, 1))
    assert not depthwise_pays(x, weight.detach(), (2, 2))
    assert not depthwise_pays(x, weight[..., :3], (2, 2))
    assert not depthwise_pays(x.double(), weight, (1, 1))
    assert not depthwise_pays(torch.randn(2, 4, 6, 6), weight, (1, 1))
    with torch.no_grad():
        assert not depthwise_pays(x, weight, (1, 1))


def test_in_bfloat16_it_is_taken_for_strides_too():
    x, weight = channels_last(torch.randn(2, 4, 6, 6)).requires_grad_(), torch.randn(4, 1, 3, 3)
    assert not depthwise_pays(x, weight, (2, 1))
    assert depthwise_pays(x.bfloat16(), weight, (2, 1))
    with torch.autocast("cpu", torch.bfloat16):
        assert depthwise_pays(x, weight, (2, 1))
        assert not depthwise_pays(x, weight, (1, 1))
        assert not depthwise_pays(x.detach(), weight, (2, 1))
        assert depthwise_pays(x.detach(), torch.randn(4, 1, 5, 5, requires_grad=True), (1, 1))


@pytest.mark.parametrize(
    ("conv", "is_taken"),
    [
        (ConvNorm(8, 8, 5, groups=8, norm="FrozenBN"), True),
        (ConvNorm(8, 8, 5, groups=8, stride=2, norm="GN"), True),
        (Conv2d(8, 8, 5, groups=4), False),
        (Conv2d(8, 16, 5, groups=8), False),
        (Conv2d(8, 8, 5, groups=8, dilation=2), False),
    ],
)
def test_layers_take_it(conv, is_taken, monkeypatch):
    calls = []
    monkeypatch.setattr("lgd.layers.conv.depthwise_conv", lambda *x: calls.append(1) or depthwise_conv(*x))
    x = channels_last(torch.randn(2, 8, 16, 16))
    found = conv(x)
    assert bool(calls) is is_taken
    monkeypatch.setattr("lgd.layers.conv.depthwise_pays", lambda *_: False)
    assert torch.equal(found, conv(x))
