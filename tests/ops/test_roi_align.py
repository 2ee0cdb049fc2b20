import math
from functools import partial

import pytest
import torch
from torchvision.ops import roi_align

from lgd.ops.roi_align import assign_levels, multilevel_roi_align

STRIDES = [4, 8, 16, 32]


def squares(*sides):
    return torch.tensor([[10.0, 20.0, 10.0 + side, 20.0 + side] for side in sides], dtype=torch.float64)


def test_levels_by_hand():
    sides = [0, 50, 111, 113, 223, 224, 447, 449, 2000]
    assert assign_levels(squares(*sides), STRIDES).tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 3]


def test_levels_go_by_the_area():
    boxes = torch.tensor([[0.0, 0.0, 448.0, 112.0], [0.0, 0.0, 448.0, 111.0]])
    assert assign_levels(boxes, STRIDES).tolist() == [2, 1]


def test_levels_that_there_are_not_fall_to_the_nearest():
    assert assign_levels(squares(20, 224, 2000), [8, 16]).tolist() == [0, 1, 1]


def make_pyramid(num_images=2, dtype=torch.float64):
    torch.manual_seed(0)
    return [torch.randn(num_images, 5, 256 // s, 320 // s, dtype=dtype, requires_grad=True) for s in STRIDES]


def make_regions(count=40, dtype=torch.float64):
    torch.manual_seed(1)
    corners = torch.rand(count, 2, dtype=dtype) * 150
    sides = torch.rand(count, 2, dtype=dtype) ** 2 * 800
    return torch.cat([corners, corners + sides], dim=1), torch.randint(0, 2, (count,))


@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_each_region_is_pooled_from_its_level(sampling_ratio):
    features, (boxes, images) = make_pyramid(), make_regions()
    pooled = multilevel_roi_align(
        features, STRIDES, boxes, images, resolution=3, sampling_ratio=sampling_ratio
    )
    levels = assign_levels(boxes, STRIDES).tolist()
    assert set(levels) == {0, 1, 2, 3}
    for index, level in enumerate(levels):
        roi = torch.cat([images[index : index + 1, None].double(), boxes[index : index + 1]], dim=1)
        alone = roi_align(features[level], roi, 3, 1 / STRIDES[level], sampling_ratio, aligned=True)
        assert torch.allclose(pooled[index], alone[0], rtol=1e-12, atol=1e-14)


def sample_slowly(feature, y, x):
    """Bilinear, with the border held for up to a cell outside."""
    height, width = feature.shape[1:]
    y, x = max(y, 0.0), max(x, 0.0)
    top, left = min(int(y), height - 1), min(int(x), width - 1)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    v, u = min(y - top, 1.0) if top < height - 1 else 0.0, min(x - left, 1.0) if left < width - 1 else 0.0
    upper = feature[:, top, left] * (1 - u) + feature[:, top, right] * u
    lower = feature[:, bottom, left] * (1 - u) + feature[:, bottom, right] * u
    return upper * (1 - v) + lower * v


def test_bins_by_hand():
    """Samples lie at the middles of equal parts of a bin, on cells whose centres are half a cell in."""
    feature = make_pyramid(1)[0].detach()
    box = [21.0, 33.0, 83.0, 67.0]  # 15.5 x 8.5 cells, bins of 7.75 x 4.25: 8 x 5 samples each
    pooled = multilevel_roi_align(
        [feature], [4], torch.tensor([box]).double(), torch.tensor([0]), resolution=2, sampling_ratio=0
    )
    x1, y1, x2, y2 = (side / 4 - 0.5 for side in box)
    width, height = (x2 - x1) / 2, (y2 - y1) / 2
    columns, rows = math.ceil(width), math.ceil(height)
    assert (columns, rows) == (8, 5)
    for i in range(2):
        for j in range(2):
            samples = [
                sample_slowly(
                    feature[0], y1 + height * (i + (a + 0.5) / rows), x1 + width * (j + (b + 0.5) / columns)
                )
                for a in range(rows)
                for b in range(columns)
            ]
            assert torch.allclose(pooled[0, :, i, j], torch.stack(samples).mean(0), rtol=1e-12)


def test_every_level_gets_a_gradient_even_without_regions():
    features = make_pyramid()
    boxes = squares(230)
    pooled = multilevel_roi_align(features, STRIDES, boxes, torch.tensor([1]), resolution=2, sampling_ratio=0)
    pooled.sum().backward()
    sums = [x.grad.abs().sum().item() for x in features]
    assert [total > 0 for total in sums] == [False, False, True, False]
    # All the weight of the samples comes back.
    assert features[2].grad.sum().item() == pytest.approx(5 * 2 * 2)


def test_no_regions():
    features = make_pyramid()
    pooled = multilevel_roi_align(
        features,
        STRIDES,
        squares().reshape(0, 4).double(),
        torch.zeros(0).long(),
        resolution=2,
        sampling_ratio=0,
    )
    assert pooled.shape == (0, 5, 2, 2)
    pooled.sum().backward()


@pytest.mark.parametrize("sample_by_sample", [False, True])
def test_half_precision_autocast(sample_by_sample):
    """What bfloat16 maps give is rounded once more, at the end; so are the gradients."""
    features, (boxes, images) = make_pyramid(dtype=torch.float32), make_regions(dtype=torch.float32)
    features = [x.detach().bfloat16().requires_grad_() for x in features]
    pool = partial(multilevel_roi_align, resolution=3, sampling_ratio=0, sample_by_sample=sample_by_sample)
    exact = pool([x.double() for x in features], STRIDES, boxes.double(), images)
    with torch.autocast("cpu", torch.bfloat16):
        pooled = pool(features, STRIDES, boxes, images)
    assert pooled.dtype == torch.bfloat16
    slope = torch.randn_like(pooled)
    found = torch.autograd.grad(pooled, features, slope)
    expected = torch.autograd.grad(exact, features, slope.double())
    for a, b in zip((pooled, *found), (exact, *expected), strict=True):
        assert torch.allclose(a.double(), b.double(), rtol=2**-7, atol=1e-4)


@pytest.mark.parametrize("sampling_ratio", [0, 2])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", range(4))
def test_boxes_that_are_no_numbers(side, value, sampling_ratio):
    """Torchvision's operator for the CPU would read anywhere; the result shall still show it."""
    features, (boxes, images) = make_pyramid(), make_regions()
    boxes[0, side] = value
    pooled = multilevel_roi_align(
        features, STRIDES, boxes, images, resolution=2, sampling_ratio=sampling_ratio
    )
    pooled.sum().backward()
    assert pooled.isnan().all()


def test_sample_by_sample_has_torchvision_bits():
    features, (boxes, images) = make_pyramid(dtype=torch.float32), make_regions(dtype=torch.float32)
    pooled = multilevel_roi_align(
        features, STRIDES, boxes, images, resolution=3, sampling_ratio=0, sample_by_sample=True
    )
    for index, level in enumerate(assign_levels(boxes, STRIDES).tolist()):
        roi = torch.cat([images[index : index + 1, None].float(), boxes[index : index + 1]], dim=1)
        assert torch.equal(
            pooled[index], roi_align(features[level], roi, 3, 1 / STRIDES[level], 0, aligned=True)[0]
        )
