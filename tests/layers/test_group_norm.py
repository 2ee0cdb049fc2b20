"""Group norm in bfloat16 on a CPU: float32 inside."""

import pytest
import torch
import torch.nn.functional as F

from lgd.layers.group_norm import GroupNorm, group_norm
from lgd.layers.norm import make_norm


@pytest.mark.parametrize("size", [(3, 16, 5, 7), (2, 64, 32, 32), (0, 16, 5, 7)])
@pytest.mark.parametrize("groups", [1, 8])
@pytest.mark.parametrize("is_affine", [True, False])
def test_it_rounds_what_float32_gives(size, groups, is_affine):
    x = (3 * torch.randn(size) + 1).bfloat16().contiguous(memory_format=torch.channels_last).requires_grad_()
    affine = [torch.randn(size[1]).requires_grad_() for _ in range(2)] if is_affine else []
    found, expected = group_norm(x, groups, *affine), F.group_norm(x.float(), groups, *affine)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected.bfloat16())
    slope = torch.randn(size).bfloat16()
    ours = torch.autograd.grad(found, (x, *affine), slope)
    theirs = torch.autograd.grad(expected, (x, *affine), slope.float())
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_only_what_trains_gets_a_gradient():
    x, weight = torch.randn(2, 8, 4, 4).bfloat16(), torch.ones(8, requires_grad=True)
    group_norm(x, 2, weight, torch.zeros(8)).float().square().sum().backward()
    assert weight.grad is not None
    assert x.grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_other_maps_are_left_to_torch(dtype):
    x, norm = torch.randn(2, 8, 4, 4, dtype=dtype), make_norm("GN", 8).to(dtype)
    assert isinstance(norm, GroupNorm)
    assert torch.equal(norm(x), F.group_norm(x, 1, norm.weight, norm.bias))


def test_a_layer_of_bfloat16_alone():
    norm, x = GroupNorm(2, 8).bfloat16(), torch.randn(2, 8, 4, 4).bfloat16()
    norm(x).float().square().sum().backward()
    assert norm.weight.grad.dtype == torch.bfloat16
    assert torch.equal(norm(x), F.group_norm(x.float(), 2).bfloat16())


def test_under_autocast_maps_stay_bfloat16():
    with torch.autocast("cpu", torch.bfloat16):
        assert GroupNorm(2, 8)(torch.randn(2, 8, 4, 4).bfloat16()).dtype == torch.bfloat16
