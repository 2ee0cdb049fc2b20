"""The batches that need the most memory."""

import numpy as np
import pytest
import torch

from lgd.data.augmentations import LargeScaleJitter, QuarterTurn
from lgd.data.canvases import augmented_canvases
from lgd.data.catalog import open_dataset
from lgd.data.mixing import CopyPaste, Mosaic
from lgd.data.outlines import read_outlines
from lgd.memory.worst_batch import (
    largest_canvases,
    most_augmented_objects,
    most_edges,
    most_objects,
    worst_batch,
)
from lgd.ops.polygons import rasterize_in_boxes


class Sizes:
    """As much of an index as canvases need."""

    def __init__(self, sizes, counts=None):
        self.heights, self.widths = np.array(sizes).T
        self.counts = np.ones(len(sizes), int) if counts is None else np.array(counts)

    def __len__(self):
        return len(self.counts)


def canvases(sizes, counts=None, **changes):
    settings = {"min_sizes": [64, 80], "max_size": 133, **changes}
    return largest_canvases(Sizes(sizes, counts), **settings)


def test_portraits_and_landscapes_have_canvases_of_their_own():
    """80 x 106.7 and 66.5 x 133 of the landscapes share a canvas of 80 x 133; 80 x 80 is no landscape."""
    assert canvases([(300, 400), (200, 400), (50, 50)]) == [(96, 96), (96, 160)]
    assert canvases([(300, 400), (400, 300)]) == [(128, 96), (96, 128)]


def test_without_grouping_the_highest_meets_the_widest():
    assert canvases([(300, 400), (400, 300)], aspect_ratio_grouping=False) == [(128, 128)]


def test_images_without_objects_count_only_where_they_come():
    sizes, counts = [(100, 100), (100, 900)], [3, 0]
    assert canvases(sizes, counts) == [(96, 96)]
    assert canvases(sizes, counts, filter_empty=False) == [(96, 96), (32, 160)]


def test_original_sizes_and_crops():
    assert canvases([(31, 200)], min_sizes=[0]) == [(32, 224)]
    assert canvases([(100, 101)], crops=True) == [(96, 160)]
    assert canvases([(101, 100)], crops=True) == [(160, 96)]


def test_turns_and_fixed_sizes_make_other_canvases():
    own = [(96, 160), (160, 96)]
    turn, half = QuarterTurn(0.5, (1, 3)), QuarterTurn(0.5, (2, 2))
    often, always = (LargeScaleJitter(p, (0.1, 2.0), (100, 140), 0.1) for p in (0.5, 1.0))
    assert augmented_canvases(own, [half, LargeScaleJitter(1.0, (0.1, 2.0), None, 0.1)]) == own
    assert augmented_canvases(own, [turn]) == [(160, 160)]
    assert augmented_canvases(own, [often]) == [(128, 160), (160, 160)]
    assert augmented_canvases(own, [always]) == [(128, 160)]
    assert augmented_canvases(own, [QuarterTurn(0.0, (1, 3))]) == own


def test_mosaics_and_pasted_objects_make_more_of_them(index):
    most = most_objects(index)
    mosaic, paste = Mosaic(0.5, (0.5, 1.0), (0.3, 0.7), 0.1), CopyPaste(0.5, (1, 2), 0.1)
    assert most_augmented_objects(index, [mosaic, paste]) == 4 * most + 2
    assert most_augmented_objects(index, [CopyPaste(0.5, (1, 999), 0.1)]) == 2 * most
    assert most_augmented_objects(index, [CopyPaste(0.0, (1, 999), 0.1)]) == most


@pytest.fixture(scope="module")
def index(small_data):
    return open_dataset(f"coco:{small_data}:train", small_data)


def test_most_objects_and_edges(index):
    assert most_objects(index) == max(int((~index.crowd(i)).sum()) for i in range(len(index)))
    edges, parts = most_edges(index)
    outlines = [read_outlines(index, i) for i in range(len(index))]
    assert edges == max(int(image.counts.max()) for image in outlines if len(image.counts))
    assert 1 <= parts <= edges


def test_batch():
    state = torch.get_rng_state()
    batch = worst_batch((64, 96), batch_size=2, num_objects=5, num_classes=3, mask_edges=(12, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert batch.images.shape == (2, 3, 64, 96)
    assert batch.sizes.tolist() == [[64, 96]] * 2
    targets = batch.targets
    assert targets.valid.all()
    assert targets.boxes.shape == (2, 5, 4)
    assert (targets.boxes[..., 2:] > targets.boxes[..., :2]).all()
    assert targets.boxes.min() >= 0
    assert (targets.boxes <= torch.tensor([96, 64, 96, 64])).all()
    assert 0 <= targets.labels.min() <= targets.labels.max() < 3
    assert targets.outlines.edges.shape == (2, 5, 12, 4)
    assert targets.outlines.num_parts == 2
    assert worst_batch((64, 96), batch_size=2, num_objects=5, num_classes=3).targets.outlines is None


def test_masks_fill_their_boxes_as_ellipses():
    batch = worst_batch((64, 96), batch_size=1, num_objects=2, num_classes=3, mask_edges=(64, 1))
    outlines, boxes = batch.targets.outlines, batch.targets.boxes[0]
    masks = rasterize_in_boxes(outlines.edges[0], outlines.parts[0], 1, boxes, 28)
    shares = masks.double().mean(dim=(-2, -1))
    assert shares.tolist() == pytest.approx([np.pi / 4] * 2, abs=0.03)
