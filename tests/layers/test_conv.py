import pytest
import torch
import torch.nn.functional as F

from lgd.layers.conv import Conv2d, ConvNorm
from tests.layers.test_norm import randomized


@pytest.mark.parametrize(("kernel_size", "stride", "groups"), [(1, 1, 1), (3, 2, 1), (3, 1, 4), (7, 2, 1)])
def test_folded_norm_equals_norm_after_the_convolution(kernel_size, stride, groups):
    conv = ConvNorm(8, 12, kernel_size, stride=stride, groups=groups, norm="FrozenBN").double()
    randomized(conv.norm)
    x = torch.randn(2, 8, 9, 10, dtype=torch.float64, requires_grad=True)
    plain = F.conv2d(x, conv.weight, stride=stride, padding=kernel_size // 2, groups=groups)
    ours, theirs = conv(x), conv.norm(plain)
    assert ours.shape[-2:] == (-(-9 // stride), -(-10 // stride))
    assert torch.allclose(ours, theirs, atol=1e-10)
    for wanted in (x, conv.weight):
        gradients = [
            torch.autograd.grad(y.square().sum(), wanted, retain_graph=True)[0] for y in (ours, theirs)
        ]
        assert torch.allclose(*gradients, rtol=1e-10, atol=1e-10)


def test_bias_only_without_norm():
    assert ConvNorm(3, 4, 1).bias is not None
    assert ConvNorm(3, 4, 1, norm="BN").bias is None


def test_trained_norm_follows_the_convolution():
    conv = ConvNorm(3, 4, 3, norm="BN").train()
    assert conv(torch.randn(2, 3, 5, 5)).mean(dim=(0, 2, 3)).abs().max() < 1e-5
    assert set(conv.state_dict()) > {"weight", "norm.weight", "norm.bias", "norm.running_mean"}


@pytest.mark.parametrize(("channels", "kernel_size", "is_cut"), [(8, 1, True), (16, 1, False), (8, 3, False)])
def test_cells_that_narrow_1x1_convolutions_skip_are_cut_before(channels, kernel_size, is_cut, monkeypatch):
    conv = Conv2d(channels, 4, kernel_size, stride=2, padding=kernel_size // 2).double()
    x = torch.randn(3, channels, 7, 10, dtype=torch.float64, requires_grad=True)
    plain = F.conv2d(x, conv.weight, conv.bias, 2, kernel_size // 2)
    given = []

    def convolve(x, *others):
        given.append(x.shape[-2:])
        return plain_conv(x, *others)

    plain_conv = F.conv2d
    monkeypatch.setattr("lgd.layers.conv.F.conv2d", convolve)
    ours = conv(x)
    with torch.no_grad():
        assert torch.equal(conv(x), plain)
    assert given == [(4, 5) if is_cut else (7, 10), (7, 10)], "only where gradients are taken"
    assert torch.allclose(ours, plain, rtol=1e-12, atol=1e-12)
    for wanted in (x, conv.weight, conv.bias):
        gradients = [
            torch.autograd.grad(y.square().sum(), wanted, retain_graph=True)[0] for y in (ours, plain)
        ]
        assert torch.allclose(*gradients, rtol=1e-12, atol=1e-12)
