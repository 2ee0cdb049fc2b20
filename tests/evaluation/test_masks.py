"""Masks in the image against a loop over its pixels, and run lengths against pycocotools'."""

import itertools
import math

import numpy as np
import pytest
import torch
from pycocotools import mask as pycocotools_mask

from lgd.evaluation import masks as masks_module
from lgd.evaluation.masks import encode_masks, paste_and_encode, paste_masks

SIZE = (37, 53)


def paste_slowly(masks, boxes, size, threshold=0.5):
    """Pixel by pixel, in Python's floats."""
    result = torch.zeros((len(masks), *size), dtype=torch.bool)
    for d, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
        if x2 <= x1 or y2 <= y1:
            continue
        grid, side = masks[d].tolist(), masks.shape[-1]
        for row, column in itertools.product(range(size[0]), range(size[1])):
            x = (column + 0.5 - x1) / (x2 - x1) * side - 0.5
            y = (row + 0.5 - y1) / (y2 - y1) * side - 0.5
            value = 0.0
            for i, j in itertools.product(
                (math.floor(y), math.floor(y) + 1), (math.floor(x), math.floor(x) + 1)
            ):
                if 0 <= i < side and 0 <= j < side:
                    value += grid[i][j] * (1 - abs(y - i)) * (1 - abs(x - j))
            result[d, row, column] = value >= threshold
    return result


def encode_with_pycocotools(bitmaps):
    encoded = pycocotools_mask.encode(np.asfortranarray(bitmaps.permute(1, 2, 0).numpy().astype(np.uint8)))
    return [{"size": list(each["size"]), "counts": each["counts"].decode()} for each in encoded]


def random_case(seed, num_detections=40, side=7):
    """Boxes in, around and beside the image; some reach far outside."""
    generator = torch.Generator().manual_seed(seed)
    corners = (torch.rand((num_detections, 2), generator=generator, dtype=torch.float64) - 0.2) * 60
    extents = torch.rand((num_detections, 2), generator=generator, dtype=torch.float64) ** 3 * 80
    masks = torch.rand((num_detections, side, side), generator=generator, dtype=torch.float64)
    return masks, torch.cat([corners, corners + extents], dim=1)


@pytest.mark.parametrize(("seed", "side", "threshold"), [(0, 7, 0.5), (1, 1, 0.5), (2, 3, 0.2), (3, 28, 0.8)])
def test_pasting_is_that_of_a_loop_over_pixels(seed, side, threshold):
    masks, boxes = random_case(seed, side=side)
    pasted = paste_masks(masks, boxes, SIZE, threshold)
    assert pasted.any()
    assert torch.equal(pasted, paste_slowly(masks, boxes, SIZE, threshold))


def test_pasting_by_hand():
    """Cells of two pixels: at their inner pixels 3/4 of one cell and 1/4 of the next, zero at the border."""
    masks = torch.tensor([[[1.0, 1.0], [0.0, 0.6]]])
    pasted = paste_masks(masks, torch.tensor([[1.0, 1.0, 5.0, 5.0]]), (6, 7))
    # The corner is 0.75 * 0.75; the row below: 1 * 0.75 and, in from the side, 0.75.
    assert pasted[0].int().tolist() == [
        [0, 0, 0, 0, 0, 0, 0],
        [0, 1, 1, 1, 1, 0, 0],
        [0, 1, 1, 1, 1, 0, 0],
        [0, 0, 0, 1, 1, 0, 0],
        [0, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0],
    ]


def test_what_reaches_the_threshold_counts():
    mask, box = torch.full((1, 4, 4), 0.5), torch.tensor([[-8.0, -8.0, 24.0, 24.0]])
    assert paste_masks(mask, box, (16, 16)).all()
    assert not paste_masks(mask, box, (16, 16), threshold=0.5001).any()


def test_boxes_without_a_size_or_outside_of_the_image_give_no_pixel():
    boxes = [
        [5, 5, 5, 9],
        [5, 5, 9, 5],
        [9, 9, 5, 5],
        [9, 9, 8.5, 30],
        [5.5, 5.5, 5.5, 5.5],
        [-9, 0, -1, 9],
        [60, 0, 70, 9],
        [0, 40, 9, 50],
    ]
    boxes = torch.tensor(
        [*boxes, [5.5 - 1e-6, 5.5 - 1e-6, 5.5 + 1e-6, 5.5 + 1e-6], [4.0, 4.0, 5.0, 5.0]], dtype=torch.float64
    )
    pasted = paste_masks(torch.ones((len(boxes), 28, 28)), boxes, SIZE)
    assert pasted.sum(dim=(1, 2)).tolist() == [0] * 8 + [1, 1]


def test_no_detections():
    masks, boxes = torch.zeros((0, 28, 28)), torch.zeros((0, 4))
    assert paste_masks(masks, boxes, SIZE).shape == (0, *SIZE)
    assert (
        paste_and_encode(masks, boxes, SIZE) == encode_masks(torch.zeros((0, *SIZE), dtype=torch.bool)) == []
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_boxes_keep_their_precision(dtype):
    """Pasting goes by the wider type: in bfloat16 the corners would be off by pixels."""
    masks, boxes = torch.ones((1, 28, 28), dtype=dtype), torch.tensor([[1001.0, 1003.0, 1008.0, 1006.0]])
    assert paste_masks(masks, boxes, (1024, 1024)).nonzero()[[0, -1]].tolist() == [
        [0, 1003, 1001],
        [0, 1005, 1007],
    ]


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (5, 6), (40, 30)])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_encoding_is_that_of_pycocotools(size, share):
    bitmaps = torch.rand((9, *size), generator=torch.Generator().manual_seed(0)) < share
    assert encode_masks(bitmaps) == encode_with_pycocotools(bitmaps)


@pytest.mark.parametrize("seed", [0, 1])
def test_pasting_and_encoding_at_once(seed):
    masks, boxes = random_case(seed)
    boxes[0] = torch.tensor([-10.0, -10.0, 90.0, 90.0])
    masks[0] = 1  # the whole image: runs go on from column to column
    expected = encode_with_pycocotools(paste_slowly(masks, boxes, SIZE))
    assert paste_and_encode(masks, boxes, SIZE) == expected
    assert expected[0] == {"size": [37, 53], "counts": "0Ym1"}


def test_several_masks_at_a_time_are_the_same(monkeypatch):
    """As on an accelerator, where each piece holds several detections."""
    masks, boxes = random_case(2)
    one_by_one = paste_and_encode(masks, boxes, SIZE)
    monkeypatch.setattr(masks_module, "_choose_step", lambda device, size: 7)
    assert paste_and_encode(masks, boxes, SIZE) == one_by_one
    assert encode_masks(paste_masks(masks, boxes, SIZE)) == one_by_one


def test_memory_follows_the_boxes_not_the_image():
    """300 masks in an image of 1.2 * 10**9 pixels: together the bitmaps would take 360 GB."""
    corners = torch.arange(300, dtype=torch.float64)[:, None].expand(-1, 2) * 99
    boxes = torch.cat([corners, corners + 20], dim=1)
    encoded = paste_and_encode(torch.ones((300, 28, 28)), boxes, (30_000, 40_000))
    assert [int(pycocotools_mask.area(each)) for each in encoded] == [400] * 300
