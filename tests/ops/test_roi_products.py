import pytest
import torch
from torchvision.ops import roi_align

from lgd.ops.roi_products import pool_by_products, products_pay

STRIDES = [4, 8]
SIZES = [(24, 32), (12, 16)]
ODD_BOXES = [
    [10.0, 20.0, 40.0, 70.0],
    [10.3, 20.7, 11.1, 21.9],  # within a cell
    [30.0, 30.0, 30.0, 60.0],  # without width
    [30.0, 30.0, 30.0, 30.0],
    [0.0, 0.0, 0.0, 0.0],
    [0.0, 0.0, 128.0, 96.0],  # the whole canvas
    [2.0, 2.0, 126.0, 94.0],  # from the first cell's centre to the last one's
    [-30.0, -20.0, 50.0, 40.0],  # over the edges
    [100.0, 80.0, 200.0, 190.0],
    [-90.0, -80.0, -10.0, -7.0],  # outside, and by less than a cell
    [131.0, 3.0, 133.9, 40.0],
    [500.0, 500.0, 700.0, 900.0],
    [-4000.0, 30.0, 5000.0, 37.0],  # huge
    [-400.0, -300.0, 500.0, 600.0],
    [0.0, 47.9, 128.0, 48.1],
]


def make_maps(dtype=torch.float64, memory_format=torch.channels_last):
    torch.manual_seed(0)
    return [
        torch.randn(2, 5, *size, dtype=dtype).contiguous(memory_format=memory_format).requires_grad_()
        for size in SIZES
    ]


def make_regions(count=60, dtype=torch.float64):
    """Regions and their images and levels: the odd ones on each level, and random ones."""
    torch.manual_seed(1)
    corners = torch.rand(count, 2, dtype=dtype) * 150 - 20
    random = torch.cat([corners, corners + torch.rand(count, 2, dtype=dtype) ** 3 * 120], dim=1)
    boxes = torch.cat([torch.tensor(ODD_BOXES, dtype=dtype)] * 2 + [random])
    levels = torch.cat([torch.arange(2).repeat_interleave(len(ODD_BOXES)), torch.randint(0, 2, (count,))])
    return boxes, torch.randint(0, 2, (len(boxes),)), levels


def pool_by_torchvision(maps, boxes, images, levels, resolution, sampling_ratio):
    rois = torch.cat([images[:, None].to(boxes.dtype), boxes], dim=1)
    pooled = torch.zeros(len(boxes), maps[0].shape[1], resolution, resolution, dtype=boxes.dtype)
    for level, (x, stride) in enumerate(zip(maps, STRIDES, strict=True)):
        rows = (levels == level).nonzero().squeeze(1)
        part = roi_align(x, rois[rows], resolution, 1 / stride, sampling_ratio, aligned=True)
        pooled = pooled.index_put((rows,), part)
    return pooled


@pytest.mark.parametrize("sampling_ratio", [0, 1, 2, 3])
@pytest.mark.parametrize(
    ("resolution", "memory_format"),
    [(1, torch.contiguous_format), (7, torch.channels_last), (14, torch.channels_last)],
)
def test_same_as_torchvision(resolution, sampling_ratio, memory_format):
    maps, (boxes, images, levels) = make_maps(memory_format=memory_format), make_regions()
    pooled = pool_by_products(
        maps, STRIDES, boxes, images, levels, resolution=resolution, sampling_ratio=sampling_ratio
    )
    expected = pool_by_torchvision(maps, boxes, images, levels, resolution, sampling_ratio)
    assert pooled.is_contiguous()
    assert torch.allclose(pooled, expected, rtol=1e-12, atol=1e-13)
    grad = torch.randn_like(pooled).contiguous(memory_format=memory_format)
    found, wanted = (torch.autograd.grad(x, maps, grad) for x in (pooled, expected))
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.shape == theirs.shape
        assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-12)


def test_corners_changed_about():
    """Without a number of samples there are none to take; torchvision reads anywhere, or fails."""
    maps, one = make_maps(), torch.tensor([1])
    for box in ([60.0, 10.0, 20.0, 50.0], [20.0, 50.0, 60.0, 10.0], [60.0, 50.0, 20.0, 10.0]):
        boxes = torch.tensor([box], dtype=torch.float64)
        pooled = pool_by_products(maps, STRIDES, boxes, one, one, resolution=2, sampling_ratio=0)
        assert not pooled.any()
        pooled = pool_by_products(maps, STRIDES, boxes, one, one, resolution=2, sampling_ratio=2)
        expected = pool_by_torchvision(maps, boxes, one, one, 2, 2)
        assert torch.allclose(pooled, expected, rtol=1e-12, atol=1e-13)


def test_float32():
    maps, (boxes, images, levels) = make_maps(torch.float32), make_regions(dtype=torch.float32)
    pooled = pool_by_products(maps, STRIDES, boxes, images, levels, resolution=7, sampling_ratio=0)
    expected = pool_by_torchvision(maps, boxes, images, levels, 7, 0)
    assert torch.allclose(pooled, expected, rtol=1e-5, atol=1e-5)
    grad = torch.randn_like(pooled)
    for ours, theirs in zip(*(torch.autograd.grad(x, maps, grad) for x in (pooled, expected)), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_no_regions():
    maps, (boxes, images, levels) = make_maps(), make_regions()
    pooled = pool_by_products(
        maps, STRIDES, boxes[:0], images[:0], levels[:0], resolution=7, sampling_ratio=0
    )
    assert pooled.shape == (0, 5, 7, 7)
    pooled.sum().backward()
    assert all(x.grad.shape == x.shape and not x.grad.any() for x in maps)


def test_the_same_bits_every_time_on_any_number_of_threads():
    maps, (boxes, images, levels) = make_maps(torch.float32), make_regions(dtype=torch.float32)
    before, runs = torch.get_num_threads(), []
    try:
        for num_threads in (1, 2, 2):
            torch.set_num_threads(num_threads)
            pooled = pool_by_products(maps, STRIDES, boxes, images, levels, resolution=7, sampling_ratio=0)
            runs.append([pooled, *torch.autograd.grad(pooled.square().sum(), maps)])
            assert torch.get_num_threads() == num_threads
    finally:
        torch.set_num_threads(before)
    for run in runs[1:]:
        assert all(torch.equal(ours, first) for ours, first in zip(run, runs[0], strict=True))


def test_the_threads_come_back_after_a_failure():
    maps, (boxes, images, levels) = make_maps(), make_regions()
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with pytest.raises(IndexError):
            pool_by_products(maps, STRIDES, boxes, images + 9, levels, resolution=2, sampling_ratio=0)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_where_torchvision_does_it():
    maps, (boxes, _, _) = make_maps(torch.float32), make_regions(dtype=torch.float32)
    assert products_pay(maps, boxes)
    assert products_pay([x.bfloat16() for x in maps], boxes)
    assert not products_pay([x.half() for x in maps], boxes)
    assert not products_pay(maps, boxes.bfloat16())
    assert not products_pay(maps, boxes.double())
    assert not products_pay([x.to("meta") for x in maps], boxes.to("meta"))
