import torch
import torch.nn.functional as F

from lgd.layers.pointwise import pointwise_conv
from lgd.layers.relu6 import relu6_


def test_values_and_gradient_are_those_of_torch():
    x = torch.tensor([-1.0, 0.0, 0.5, 6.0, 7.0, torch.nan], requires_grad=True)
    slope = torch.arange(1.0, 7.0)
    ours, theirs = relu6_(x * 1), F.relu6(x * 1)
    assert torch.equal(ours.nan_to_num(-1), theirs.nan_to_num(-1))
    assert torch.equal(*(torch.autograd.grad(y, x, slope)[0] for y in (ours, theirs)))


def test_nothing_is_kept_but_the_result():
    made, kept = torch.randn(4, 5, requires_grad=True) * 2, []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        result = relu6_(made)
    assert result is made
    assert [x.data_ptr() for x in kept] == [result.data_ptr()]


def test_without_gradients_it_clamps_in_place():
    x = torch.tensor([-1.0, 7.0])
    assert relu6_(x) is x
    assert x.tolist() == [0, 6]


def test_behind_a_pointwise_convolution_no_gradient_is_copied():
    x = torch.randn(2, 8, 4, 4).contiguous(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(3, 8, 1, 1, requires_grad=True)
    ours, theirs = relu6_(pointwise_conv(x, weight)), F.relu6(F.conv2d(x, weight))
    assert "CopySlices" not in type(ours.grad_fn).__name__
    slope = torch.randn_like(ours)
    for a, b in zip(*(torch.autograd.grad(y, (x, weight), slope) for y in (ours, theirs)), strict=True):
        assert torch.allclose(a, b, atol=1e-5)
