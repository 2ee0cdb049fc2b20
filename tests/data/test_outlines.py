from dataclasses import replace

import numpy as np
import pytest
import torch

from lgd.data.errors import DataError
from lgd.data.outlines import (
    ImageOutlines,
    pad_outlines,
    polygons_to_outlines,
    read_outlines,
    require_masks,
    select_outlines,
)
from lgd.data.transforms import View, Window
from lgd.ops.polygons import rasterize_in_boxes, rasterize_on_grid
from tests.data.sets import annotation, image_record, open_coco, write_coco

SQUARE = [1.0, 1.0, 3.0, 1.0, 3.0, 3.0, 1.0, 3.0]
TRIANGLE = [10.0, 10.0, 20.0, 10.0, 15.0, 18.5]


def encode(mask):
    """Uncompressed RLE of a (H, W) mask."""
    flat = mask.T.reshape(-1)
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    bounds = np.concatenate([[0, 0] if flat[0] else [0], changes, [flat.size]])
    return {"size": list(mask.shape), "counts": np.diff(bounds).tolist()}


def open_masks(folder, segmentations, *, width=64, height=48, **kwargs):
    annotations = [
        annotation(k, 1, (0, 0, 3, 3), **({} if s is None else {"segmentation": s}))
        for k, s in enumerate(segmentations, 1)
    ]
    return open_coco(write_coco(folder, [image_record(1, width, height)], annotations, **kwargs))


def draw(outlines: ImageOutlines, height, width):
    padded = pad_outlines([outlines], len(outlines.counts), torch.float32)
    size = (height, width)
    return rasterize_on_grid(padded.edges, padded.parts, padded.num_parts, torch.tensor([size]), size, size)[
        0
    ].numpy()


def random_masks(generator, count, height, width):
    """Noise of all densities, blobs, full and empty ones, full columns and rows."""
    masks = [generator.random((height, width)) < generator.random() for _ in range(count)]
    y, x = np.mgrid[:height, :width]
    for k in range(0, count, 2):
        distance = np.hypot(y - generator.uniform(0, height), x - generator.uniform(0, width))
        masks[k] = distance < generator.uniform(1, width)
    masks[1][:], masks[3][:] = True, False
    masks[5][:, : width // 2] = True
    masks[7][: height // 2] = True
    return masks


def test_run_lengths_give_back_the_mask_to_the_bit(tmp_path):
    generator = np.random.default_rng(0)
    masks = random_masks(generator, 200, 23, 31)
    index = open_masks(tmp_path, [encode(mask) for mask in masks], width=31, height=23)
    outlines = read_outlines(index, 0)
    assert np.array_equal(draw(outlines, 23, 31), np.stack(masks))
    whole = Window(0, 0, 23, 31)
    flipped = replace(outlines, edges=View(whole, (23, 31), True, "RGB").edges(outlines.edges))
    assert np.array_equal(draw(flipped, 23, 31), np.stack(masks)[..., ::-1])
    enlarged = replace(outlines, edges=View(whole, (46, 93), False, "RGB").edges(outlines.edges))
    assert np.array_equal(draw(enlarged, 46, 93), np.stack(masks).repeat(2, 1).repeat(3, 2))


def test_runs_of_no_length(tmp_path):
    """Two runs of ones that touch, and one that starts with the image."""
    rle = {"size": [4, 3], "counts": [0, 2, 0, 3, 4, 0, 1, 2]}
    index = open_masks(tmp_path, [rle], width=3, height=4)
    flat = np.array([1] * 5 + [0] * 5 + [1] * 2, dtype=bool)
    assert np.array_equal(draw(read_outlines(index, 0), 4, 3)[0], flat.reshape(3, 4).T)


def test_borders_of_a_rectangle_are_two_edges(tmp_path):
    mask = np.zeros((48, 64), dtype=bool)
    mask[5:9, 10:30] = True
    outlines = read_outlines(open_masks(tmp_path, [encode(mask)]), 0)
    assert outlines.edges.tolist() == [[10, 5, 30, 5], [10, 9, 30, 9]]
    assert outlines.parts.tolist() == [0, 0]
    assert outlines.counts.tolist() == [2]


def test_polygons_by_hand(tmp_path):
    outlines = read_outlines(open_masks(tmp_path, [[TRIANGLE, SQUARE], [SQUARE]]), 0)
    assert outlines.counts.tolist() == [7, 4]
    assert outlines.parts.tolist() == [0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0]
    assert outlines.edges[:3].tolist() == [[10, 10, 20, 10], [20, 10, 15, 18.5], [15, 18.5, 10, 10]]
    assert outlines.edges[7:].tolist() == [[1, 1, 3, 1], [3, 1, 3, 3], [3, 3, 1, 3], [1, 3, 1, 1]]


def test_polygons_and_run_lengths_in_one_image(tmp_path):
    mask = np.zeros((48, 64), dtype=bool)
    mask[5:9, 10:30] = True
    index = open_masks(tmp_path, [[SQUARE], encode(mask), None, [TRIANGLE, SQUARE], encode(~mask)])
    outlines = read_outlines(index, 0)
    assert outlines.counts.tolist() == [4, 2, 0, 7, 4]
    drawn = draw(outlines, 48, 64)
    assert drawn[0].sum() == 4
    assert np.array_equal(drawn[1], mask)
    assert not drawn[2].any()
    assert np.array_equal(drawn[3] & drawn[0], drawn[0])
    assert np.array_equal(drawn[4], ~mask)


def test_every_image_has_its_own(tmp_path):
    segmentations = [[[SQUARE]], [], [[TRIANGLE], [SQUARE, SQUARE]]]
    annotations = [
        annotation(10 * image + k, image, segmentation=polygons)
        for image, objects in enumerate(segmentations, 1)
        for k, polygons in enumerate(objects)
    ]
    index = open_coco(write_coco(tmp_path, [image_record(k) for k in (1, 2, 3)], annotations))
    counts = [read_outlines(index, i).counts.tolist() for i in range(3)]
    assert counts == [[4], [], [3, 8]]
    assert read_outlines(index, 1).edges.shape == (0, 4)
    assert read_outlines(index, 2).edges[0].tolist() == [10, 10, 20, 10]


def test_select(tmp_path):
    outlines = read_outlines(open_masks(tmp_path, [[TRIANGLE], [SQUARE], None, [SQUARE, TRIANGLE]]), 0)
    some = select_outlines(outlines, torch.tensor([False, True, True, False]))
    assert some.counts.tolist() == [4, 0]
    assert some.edges.tolist() == outlines.edges[3:7].tolist()
    assert some.parts.tolist() == [0] * 4


def test_pad_by_hand():
    polygons = [[[TRIANGLE], [SQUARE, TRIANGLE]], []]
    padded = polygons_to_outlines(polygons, 3, torch.float64)
    assert padded.edges.shape == (2, 3, 7, 4)
    assert padded.edges.dtype == torch.float64
    assert padded.num_parts == 2
    assert padded.edges[0, 0, :3].tolist() == [[10, 10, 20, 10], [20, 10, 15, 18.5], [15, 18.5, 10, 10]]
    assert not padded.edges[0, 0, 3:].any()
    assert padded.parts[0, 1].tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert padded.edges[0, 1, 4].tolist() == [10, 10, 20, 10]
    assert not padded.edges[0, 2].any()
    assert not padded.edges[1].any()


@pytest.mark.parametrize("polygons", [[[]], [[], []], [[[]]]])
def test_nothing_to_pad(polygons):
    padded = polygons_to_outlines(polygons, 1, torch.float32)
    assert padded.edges.shape == (len(polygons), 1, 1, 4)
    assert padded.num_parts == 1
    boxes = torch.zeros(len(polygons), 4)
    assert not rasterize_in_boxes(padded.edges[:, 0], padded.parts[:, 0], 1, boxes, 7).any()


@pytest.mark.parametrize("polygon", [[1.0, 2.0, 3.0, 4.0], [1.0] * 7])
def test_polygon_that_is_none(polygon):
    with pytest.raises(ValueError, match=f"a polygon has {len(polygon)} coordinates; give x and y of three"):
        polygons_to_outlines([[[SQUARE, polygon]]], 1, torch.float64)


def test_masks_that_are_missing(tmp_path):
    """Line 2 of two points, 4 without a segmentation; a crowd needs none."""
    index = open_masks(tmp_path, [[SQUARE], [[1, 1, 5, 5]], [TRIANGLE], None, [[1, 1]], []])
    with pytest.raises(DataError) as caught:
        require_masks(index)
    text = str(caught.value)
    assert (
        f"{index.json_path}: annotations 2 (image 1), 4 (image 1), 5 (image 1) and 1 more have no mask"
        in text
    )
    assert "fewer than three points" in text
    assert "MODEL.MASK_ON False" in text
    assert "\n" not in text


def test_crowds_need_no_mask_and_all_others_have_one(tmp_path):
    annotations = [annotation(1, 1, segmentation=[SQUARE]), annotation(2, 1, iscrowd=1)]
    require_masks(open_coco(write_coco(tmp_path, [image_record(1)], annotations)))


def test_missing_masks_name_their_images(tmp_path):
    annotations = [annotation(7, 3, segmentation=[SQUARE]), annotation(5, 4)]
    index = open_coco(write_coco(tmp_path, [image_record(3), image_record(4)], annotations))
    with pytest.raises(DataError, match=r"annotations 5 \(image 4\) have no mask"):
        require_masks(index)
