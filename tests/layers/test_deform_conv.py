import math

import numpy as np
import pytest
import torch

from lgd.layers.conv import ConvNorm
from lgd.layers.deform_conv import OffsetConv, apply_deformed
from tests.layers.test_norm import randomized


def make(*, in_channels=4, out_channels=6, num_groups=1, modulated=True, norm="", scale=0.5, **kwargs):
    """A deformable convolution in float64 whose offsets are a few pixels."""
    conv = ConvNorm(in_channels, out_channels, 3, norm=norm, **kwargs).double()
    offset_conv = OffsetConv(conv, num_groups=num_groups, modulated=modulated).double()
    torch.nn.init.normal_(offset_conv.weight, std=scale)
    torch.nn.init.normal_(offset_conv.bias, std=scale)
    return conv, offset_conv


def interpolate(plane, y, x):
    """Bilinear interpolation of a plane (H, W) that is 0 outside."""
    value = 0.0
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < plane.shape[0] and 0 <= column < plane.shape[1]:
                value += (1 - abs(y - row)) * (1 - abs(x - column)) * plane[row, column]
    return value


def slow_deform_conv(x, predicted, conv, num_groups, modulated):
    """Output pixel by output pixel, tap by tap, in the channel order of the reference."""
    stride, dilation, weight = conv.stride[0], conv.dilation[0], conv.weight.detach().numpy()
    num_images, (out_channels, in_per_group) = len(x), weight.shape[:2]
    in_per_offset = x.shape[1] // num_groups
    height, width = predicted.shape[2:]
    out = np.zeros((num_images, out_channels, height, width))
    for b, o, i, j in np.ndindex(out.shape):
        first = o // (out_channels // conv.groups) * in_per_group
        for c, tap in np.ndindex(in_per_group, 9):
            group = (first + c) // in_per_offset
            dy, dx = predicted[b, 18 * group + 2 * tap : 18 * group + 2 * tap + 2, i, j]
            y = (i * stride) + (tap // 3 - 1) * dilation + dy
            x_ = (j * stride) + (tap % 3 - 1) * dilation + dx
            mask = 1.0
            if modulated:
                mask = 1 / (1 + math.exp(-predicted[b, 18 * num_groups + 9 * group + tap, i, j]))
            out[b, o, i, j] += weight[o, c, tap // 3, tap % 3] * mask * interpolate(x[b, first + c], y, x_)
    return out + (0 if conv.bias is None else conv.bias.detach().numpy()[:, None, None])


@pytest.mark.parametrize("modulated", [True, False], ids=["v2", "v1"])
@pytest.mark.parametrize(
    "options",
    [{}, {"stride": 2}, {"dilation": 2}, {"groups": 2}, {"num_groups": 2}, {"groups": 2, "num_groups": 4}],
    ids=str,
)
def test_pixel_by_pixel(options, modulated):
    torch.manual_seed(0)
    conv, offset_conv = make(modulated=modulated, **options)
    x = torch.randn(2, 4, 5, 6, dtype=torch.float64)
    predicted = offset_conv(x).detach().numpy()
    assert np.abs(predicted).max() > 3  # some taps leave the map
    expected = slow_deform_conv(x.numpy(), predicted, conv, options.get("num_groups", 1), modulated)
    out = apply_deformed(conv, offset_conv, x).detach().numpy()
    assert out.shape == expected.shape
    assert np.allclose(out, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("modulated", "share"), [(False, 1.0), (True, 0.5)])
def test_starts_as_a_plain_convolution(modulated, share):
    conv = ConvNorm(4, 6, 3, norm="FrozenBN")
    offset_conv = OffsetConv(conv, modulated=modulated)
    assert offset_conv.out_channels == (27 if modulated else 18)
    assert not any(parameter.any() for parameter in offset_conv.parameters())
    x = torch.randn(2, 4, 7, 5)
    assert torch.allclose(apply_deformed(conv, offset_conv, x), share * conv(x), atol=1e-5)


@pytest.mark.parametrize("norm", ["FrozenBN", "BN"])
def test_norm_follows(norm):
    torch.manual_seed(0)
    conv, offset_conv = make(norm=norm)
    randomized(conv.norm)
    conv.eval()
    plain = ConvNorm(4, 6, 3).double()
    plain.weight.data, plain.bias.data = conv.weight.data, torch.zeros(6, dtype=torch.float64)
    x = torch.randn(2, 4, 7, 5, dtype=torch.float64)
    expected = conv.norm(apply_deformed(plain, offset_conv, x))
    assert torch.allclose(apply_deformed(conv, offset_conv, x), expected, atol=1e-10)


def test_gradients():
    torch.manual_seed(0)
    conv, offset_conv = make(in_channels=2, out_channels=2, norm="FrozenBN")
    x = torch.randn(1, 2, 4, 3, dtype=torch.float64, requires_grad=True)
    names, parameters = zip(
        *(
            {f"conv.{n}": p for n, p in conv.named_parameters()} | dict(offset_conv.named_parameters())
        ).items(),
        strict=True,
    )
    assert names == ("conv.weight", "weight", "bias")
    assert torch.autograd.gradcheck(lambda *_: apply_deformed(conv, offset_conv, x), (x, *parameters))


@pytest.mark.parametrize("norm", ["", "FrozenBN"])
def test_bfloat16(norm):
    torch.manual_seed(0)
    conv, offset_conv = (module.float() for module in make(norm=norm, scale=0.05))
    x = torch.randn(2, 4, 9, 8)
    expected = apply_deformed(conv, offset_conv, x)
    with torch.autocast("cpu", torch.bfloat16):
        autocast = apply_deformed(conv, offset_conv, x)
        from_lower = apply_deformed(conv, offset_conv, x.bfloat16())
    whole = apply_deformed(conv.bfloat16(), offset_conv.bfloat16(), x.bfloat16())
    assert (autocast.dtype, from_lower.dtype, whole.dtype) == (torch.float32, torch.bfloat16, torch.bfloat16)
    for out in (autocast, from_lower, whole):
        assert torch.allclose(out.float(), expected, atol=0.06)


def test_meta_device():
    conv, offset_conv = (module.to("meta") for module in make(stride=2))
    assert apply_deformed(conv, offset_conv, torch.empty(2, 4, 9, 8, device="meta").double()).shape == (
        2,
        6,
        5,
        4,
    )


def test_groups_of_offsets_must_divide_the_channels():
    with pytest.raises(ValueError, match="of 4 channels does not divide into 3 groups of offsets"):
        OffsetConv(ConvNorm(4, 6, 3), num_groups=3)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e30, -1e30])
@pytest.mark.parametrize("norm", ["", "FrozenBN", "GN"])
def test_offsets_that_are_no_numbers(norm, value):
    """Torchvision's operator for the CPU would read anywhere; the result shall still show it."""
    conv, offset_conv = make(norm=norm)
    x = torch.randn(2, 4, 9, 9, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        offset_conv.bias[3] = value
    out = apply_deformed(conv, offset_conv, x)
    out.sum().backward()
    assert out.isnan().all() == (not math.isfinite(value))
