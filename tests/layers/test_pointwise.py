import pytest
import torch
import torch.nn.functional as F

from lgd.layers.conv import Conv2d, ConvNorm
from lgd.layers.pointwise import pointwise_conv, pointwise_pays


def images(*shape, dtype=torch.float32):
    return torch.randn(shape, dtype=dtype).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("shape", [(1, 8, 4, 4), (3, 8, 16, 5), (2, 6, 7, 24)])
def test_pieces_of_images_give_the_convolution_and_its_gradients(shape):
    x, weight, bias = (
        images(*shape, dtype=torch.float64),
        torch.randn(5, shape[1], 1, 1).double(),
        torch.randn(5),
    )
    inputs = [each.double().requires_grad_() for each in (x, weight, bias)]
    ours, theirs = pointwise_conv(*inputs), F.conv2d(*inputs)
    assert ours.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(ours, theirs, atol=1e-12)
    slope = torch.randn_like(ours)
    for a, b in zip(*(torch.autograd.grad(y, inputs, slope) for y in (ours, theirs)), strict=True):
        assert torch.allclose(a, b, atol=1e-12)


def test_it_is_taken_where_torch_goes_its_slow_way(own_threads):
    assert pointwise_pays(images(2, 8, 16, 16))
    assert not pointwise_pays(images(16, 8, 4, 4))
    assert not pointwise_pays(torch.randn(2, 8, 16, 16))  # pieces would be copies
    assert not pointwise_pays(images(1, 8, 1, 67))  # a prime number of pixels
    assert not pointwise_pays(images(2, 8, 16, 16, dtype=torch.float64))
    own_threads(2)
    assert not pointwise_pays(images(2, 8, 16, 16))


@pytest.mark.parametrize(
    ("conv", "is_taken"),
    [
        (ConvNorm(8, 4, 1, norm="FrozenBN"), True),
        (Conv2d(8, 4, 1), True),
        (Conv2d(8, 4, 1, stride=2), False),
        (Conv2d(8, 4, 1, padding=1), False),
        (Conv2d(8, 4, 1, groups=2), False),
        (Conv2d(8, 4, 3, padding=1), False),
    ],
)
def test_layers_take_it(conv, is_taken, monkeypatch):
    calls = []
    monkeypatch.setattr("lgd.layers.conv.pointwise_conv", lambda *x: calls.append(1) or pointwise_conv(*x))
    x = images(2, 8, 16, 16)
    found = conv(x)
    assert bool(calls) is is_taken
    monkeypatch.setattr("lgd.layers.conv.pointwise_pays", lambda x: False)
    assert torch.allclose(found, conv(x), atol=1e-6)
