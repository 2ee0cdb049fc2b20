import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lgd.layers.conv import Conv2d, ConvNorm, set_winograd
from lgd.layers.winograd import winograd_conv3x3, winograd_pays


def draw(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(sum(shape)))


def outcome(convolve, x, weight, bias):
    """The result, and the gradients of a sum with random factors."""
    x, weight, bias = (tensor.clone().requires_grad_() for tensor in (x, weight, bias))
    result = convolve(x, weight, bias)
    gradients = torch.autograd.grad(
        (result * draw(*result.shape, dtype=result.dtype)).sum(), (x, weight, bias)
    )
    return result, *gradients


def usual(x, weight, bias):
    return F.conv2d(x, weight, bias, padding=1)


@pytest.mark.parametrize("size", [(1, 1), (4, 4), (5, 3), (13, 33), (8, 1), (3, 140)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_it_is_the_usual_convolution(size, layout):
    x = draw(2, 3, *size).contiguous(memory_format=layout)
    found = outcome(winograd_conv3x3, x, draw(5, 3, 3, 3), draw(5))
    expected = outcome(usual, x, draw(5, 3, 3, 3), draw(5))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_blocks_of_many_rows_and_images_join():
    x, weight, bias = draw(3, 2, 70, 90), draw(4, 2, 3, 3), draw(4)
    for ours, theirs in zip(
        outcome(winograd_conv3x3, x, weight, bias), outcome(usual, x, weight, bias), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


def test_rounding_in_float32_stays_near_that_of_the_usual_sum():
    x, weight = draw(1, 128, 40, 40), draw(128, 128, 3, 3)
    exact = F.conv2d(x, weight, padding=1)
    errors = [
        (convolved.double() - exact).norm() / exact.norm()
        for convolved in (
            winograd_conv3x3(x.float(), weight.float()),
            F.conv2d(x.float(), weight.float(), padding=1),
        )
    ]
    assert errors[0] < 5e-6
    assert errors[0] < 20 * errors[1]


def test_gradients_that_nobody_asks_for_are_left_out():
    x, weight = draw(1, 2, 9, 9), draw(2, 2, 3, 3)
    winograd_conv3x3(x, weight.requires_grad_()).sum().backward()
    expected = torch.autograd.grad(F.conv2d(x, weight, padding=1).sum(), weight)[0]
    torch.testing.assert_close(weight.grad, expected)
    assert x.grad is None
    weight.requires_grad_(False)
    winograd_conv3x3(x.requires_grad_(), weight).sum().backward()
    expected = torch.autograd.grad(F.conv2d(x, weight, padding=1).sum(), x)[0]
    torch.testing.assert_close(x.grad, expected)


@pytest.mark.parametrize("size", [(8, 8), (7, 9)])
def test_what_follows_may_write_into_the_result(size):
    x, weight, bias = draw(2, 3, *size), draw(4, 3, 3, 3), draw(4)
    for ours, theirs in zip(
        outcome(lambda *args: winograd_conv3x3(*args).relu_(), x, weight, bias),
        outcome(lambda *args: usual(*args).relu(), x, weight, bias),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


def test_where_it_pays():
    wide, narrow = torch.zeros(2, 128, 40, 40), torch.zeros(2, 128, 12, 12)
    weight = torch.zeros(256, 128, 3, 3)
    assert winograd_pays(wide, weight)
    assert not winograd_pays(narrow, weight)
    assert not winograd_pays(wide, weight[:100])
    assert not winograd_pays(wide.bfloat16(), weight.bfloat16())
    assert not winograd_pays(wide.to("meta"), weight.to("meta"))
    with torch.autocast("cpu", torch.bfloat16):
        assert not winograd_pays(wide, weight)


def used_by(layer, x, monkeypatch):
    calls = []
    monkeypatch.setattr(
        "lgd.layers.conv.winograd_conv3x3", lambda *args: calls.append(args) or winograd_conv3x3(*args)
    )
    with torch.no_grad():
        result = layer(x)
        set_winograd(layer, False)
        torch.testing.assert_close(result, layer(x), rtol=1e-4, atol=1e-4)
    return len(calls)


@pytest.mark.parametrize(
    ("layer", "uses"),
    [
        (Conv2d(128, 128, 3, padding=1), True),
        (ConvNorm(128, 128, 3), True),
        (ConvNorm(128, 128, 3, norm="FrozenBN"), True),
        (ConvNorm(128, 128, 3, norm="GN"), True),
        (Conv2d(128, 128, 3), False),
        (Conv2d(128, 128, 3, stride=2, padding=1), False),
        (Conv2d(128, 128, 3, padding=2, dilation=2), False),
        (Conv2d(128, 128, 1), False),
        (Conv2d(128, 256, 3, padding=1, groups=2), False),
    ],
)
def test_layers_use_it_where_they_can(layer, uses, monkeypatch):
    set_winograd(nn.Sequential(layer), True)
    assert used_by(layer, draw(2, 128, 40, 40, dtype=torch.float32), monkeypatch) == uses
    assert not layer.winograd
