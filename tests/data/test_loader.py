import io
import itertools
import logging
import multiprocessing
import os
import pickle
import signal
import socket
from contextlib import nullcontext
from dataclasses import replace
from multiprocessing.connection import arbitrary_address
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lgd.data.canvases import static_canvases
from lgd.data.coco import load_coco
from lgd.data.collate import Layout
from lgd.data.errors import DataError, ImageError
from lgd.data.index import AnnotationIndex
from lgd.data.loader import test_loader, train_loader
from lgd.data.samples import Preparation
from lgd.data.transforms import Crop, resize_image
from lgd.data.workers import WorkerContext
from lgd.ops.polygons import rasterize_in_boxes, rasterize_on_grid
from lgd.structures import Batch
from tests.data.nasty import NASTY, NOTHING, names_of
from tests.data.sets import annotation, image_record, open_coco, write_coco
from tests.samples import further

TRAIN: dict[str, Any] = {
    "batch_size": 4,
    "world_size": 1,
    "rank": 0,
    "seed": 3,
    "min_sizes": (32, 40),
    "max_size": 64,
    "num_workers": 0,
}
TEST: dict[str, Any] = {
    "batch_size": 4,
    "world_size": 1,
    "rank": 0,
    "min_size": 40,
    "max_size": 64,
    "num_workers": 0,
}


def make_with_masks(root: Path) -> AnnotationIndex:
    """Four images of 64 x 48 with rectangles as masks: polygons that are their boxes, RLE, and a crowd."""
    columns = np.zeros((64, 48), dtype=int)
    columns[10:30, 8:20] = 1
    changes = np.flatnonzero(np.diff(columns.reshape(-1))) + 1
    rle = {"size": [48, 64], "counts": np.diff([0, *changes.tolist(), columns.size]).tolist()}
    annotations = [annotation(50, 2, (0, 0, 64, 48), iscrowd=1)]
    for k in range(1, 5):
        x, y = 5 * k, 4 * k
        polygon = [x, y, x + 20, y, x + 20, y + 12, x, y + 12]
        annotations.append(annotation(k, k, (x, y, 20, 12), segmentation=[polygon]))
        annotations.append(annotation(10 + k, k, (10, 8, 20, 12), segmentation=rle))
        # Of this only what lies beyond the image's edge has an outline: the box is dropped, the mask with it.
        annotations.append(annotation(20 + k, k, (63.999999, 0, 9, 9), segmentation=[[64, 0, 70, 0, 70, 9]]))
    return open_coco(write_coco(root, [image_record(k) for k in range(1, 5)], annotations))


def make(root: Path) -> AnnotationIndex:
    """Twelve images, wide ones and tall ones; 5 has no box, 6 only a crowd, 7 two boxes and a crowd."""
    sizes = [(64, 48), (48, 64), (50, 40)]
    images = [image_record(k, *sizes[k % 3]) for k in range(1, 13)]
    annotations = [
        annotation(k, k, (k, 2 * k, 9, 6), category=(1, 3, 7)[k % 3]) for k in range(1, 13) if k not in (5, 6)
    ]
    annotations += [
        annotation(20, 6, iscrowd=1),
        annotation(21, 7, (0, 0, 48, 64), iscrowd=1),
        annotation(22, 7, (3, 3, 7, 7)),
    ]
    return open_coco(write_coco(root, images, annotations))


@pytest.fixture
def index(tmp_path) -> AnnotationIndex:
    return make(tmp_path)


def take(loader, count: int) -> list[Batch]:
    batches = iter(loader)
    try:
        return list(itertools.islice(batches, count))
    finally:
        batches.close()


def serialised(batch: Batch) -> bytes:
    buffer = io.BytesIO()
    tensors = [batch.images, batch.sizes, batch.original_sizes, batch.image_ids]
    targets = [batch.targets.boxes, batch.targets.labels, batch.targets.valid]
    if batch.targets.outlines is not None:
        targets += [batch.targets.outlines.edges, batch.targets.outlines.parts]
    torch.save((tensors + targets, batch.skipped), buffer)
    return buffer.getvalue()


def same(first: list[Batch], second: list[Batch]) -> bool:
    return [serialised(b) for b in first] == [serialised(b) for b in second]


def test_contract_of_a_training_batch(index):
    for batch in take(train_loader(index, **TRAIN), 12):
        count, _, height, width = batch.images.shape
        assert count == 4
        assert batch.images.dtype == torch.uint8
        assert height % 32 == width % 32 == 0
        assert batch.sizes.dtype == batch.original_sizes.dtype == batch.image_ids.dtype == torch.int64
        assert batch.targets.boxes.dtype == torch.float32
        assert batch.targets.boxes.shape == (4, batch.targets.valid.shape[1], 4)
        assert batch.targets.valid.any(dim=1).all()
        assert batch.targets.valid.shape[1] == batch.targets.valid.sum(dim=1).max()
        assert not batch.targets.boxes[~batch.targets.valid].any()
        assert batch.skipped == ()
        for b in range(4):
            h, w = batch.sizes[b].tolist()
            assert not batch.images[b, :, h:].any()
            assert not batch.images[b, :, :, w:].any()
            assert batch.images[b, :, :h, :w].any()
            assert min(h, w) in (32, 40)
            boxes = batch.targets.boxes[b][batch.targets.valid[b]]
            assert (boxes[:, 2:] > boxes[:, :2]).all()
            assert (boxes >= 0).all()
            assert (boxes <= torch.tensor([w, h, w, h])).all()


def test_pixels_and_boxes_are_the_files(index):
    options = TRAIN | {"min_sizes": (48,), "max_size": 1000, "flip_prob": 0.0, "image_format": "RGB"}
    batch = take(train_loader(index, **options), 1)[0]
    for b, image_id in enumerate(batch.image_ids.tolist()):
        i = index.image_ids.tolist().index(image_id)
        pixels = torch.from_numpy(np.array(Image.open(index.path(i)))).permute(2, 0, 1)
        h, w = batch.sizes[b].tolist()
        assert batch.original_sizes[b].tolist() == list(pixels.shape[1:])
        assert torch.equal(batch.images[b, :, :h, :w], resize_image(pixels, (h, w)))
        keep = ~index.crowd(i)
        scale = np.array([w / pixels.shape[2], h / pixels.shape[1]] * 2)
        limits = np.array([w, h, w, h])
        expected = np.minimum(index.boxes(i)[keep] * scale, limits)
        valid = batch.targets.valid[b]
        assert np.allclose(batch.targets.boxes[b][valid].numpy(), expected)
        assert batch.targets.labels[b][valid].tolist() == index.labels(i)[keep].tolist()


def test_flip_mirrors_pixels_and_boxes(index):
    plain, flipped = (take(train_loader(index, **TRAIN, flip_prob=p), 3) for p in (0.0, 1.0))
    for one, other in zip(plain, flipped, strict=True):
        assert one.image_ids.tolist() == other.image_ids.tolist()
        for b, (h, w) in enumerate(one.sizes.tolist()):
            assert torch.equal(one.images[b, :, :h, :w], other.images[b, :, :h, :w].flip(2))
        width = one.sizes[:, 1].view(-1, 1)
        valid = one.targets.valid
        x1, x2 = one.targets.boxes[..., 0], one.targets.boxes[..., 2]
        torch.testing.assert_close(other.targets.boxes[..., 0][valid], (width - x2)[valid])
        torch.testing.assert_close(other.targets.boxes[..., 2][valid], (width - x1)[valid])


def test_flip_and_size_vary(index):
    batches = take(train_loader(index, **TRAIN), 20)
    assert {min(size) for batch in batches for size in batch.sizes.tolist()} == {32, 40}
    ranged = train_loader(index, **TRAIN | {"min_sizes": (30, 36)}, min_size_sampling="range")
    assert {min(size) for batch in take(ranged, 20) for size in batch.sizes.tolist()} == set(range(30, 37))


@pytest.mark.parametrize("flip_prob", [0.0, 1.0])
def test_masks_follow_their_boxes(tmp_path, flip_prob):
    """Rectangles fill their boxes, whatever became of these."""
    index = make_with_masks(tmp_path)
    for batch in take(train_loader(index, **TRAIN, flip_prob=flip_prob, with_masks=True), 6):
        targets, outlines = batch.targets, batch.targets.outlines
        assert targets.valid.tolist() == [[True, True]] * 4
        assert outlines is not None
        assert outlines.edges.dtype == torch.float32
        assert outlines.edges.shape == (4, 2, 4, 4)
        assert outlines.parts.shape == (4, 2, 4)
        flat = (x.flatten(0, 1) for x in (outlines.edges, outlines.parts, targets.boxes))
        edges, parts, boxes = flat
        assert rasterize_in_boxes(edges, parts, outlines.num_parts, boxes, 9).all()
        canvas = (batch.images.shape[2], batch.images.shape[3])
        drawn = rasterize_on_grid(
            outlines.edges, outlines.parts, outlines.num_parts, batch.sizes, canvas, canvas
        )
        extent = targets.boxes[..., 2:] - targets.boxes[..., :2]
        assert (drawn.sum(dim=(2, 3)) / extent.prod(dim=2)).sub(1).abs().max() < 0.1


def test_no_masks_unless_asked_for(tmp_path):
    index = make_with_masks(tmp_path)
    assert take(train_loader(index, **TRAIN), 1)[0].targets.outlines is None
    assert all(batch.targets.outlines is None for batch in test_loader(index, **TEST))


def test_masks_in_workers_and_in_testing(tmp_path):
    index = make_with_masks(tmp_path)
    expected = take(train_loader(index, **TRAIN, with_masks=True), 3)
    assert same(take(train_loader(index, **TRAIN | {"num_workers": 2}, with_masks=True), 3), expected)
    (batch,) = test_loader(index, **TEST, with_masks=True)
    assert batch.targets.outlines is not None
    assert batch.targets.outlines.edges.shape == (4, 2, 4, 4)
    wide = take(train_loader(index, **TRAIN, with_masks=True, dtype=torch.float64), 1)[0]
    assert wide.targets.outlines is not None
    assert wide.targets.outlines.edges.dtype == torch.float64


def test_masks_that_are_missing(index):
    for loader, options in ((train_loader, TRAIN), (test_loader, TEST)):
        with pytest.raises(
            DataError, match=r"instances_train.json: annotations 1 \(image 1\), .* have no mask"
        ):
            loader(index, **options, with_masks=True)


def test_masks_of_a_test_set_without_annotations(tmp_path):
    index = open_coco(write_coco(tmp_path, [image_record(1)], None))
    (batch,) = test_loader(index, **TEST, with_masks=True)
    assert batch.targets.outlines is not None
    assert not batch.targets.outlines.edges.any()


def test_crop_takes_pixels_boxes_and_masks_along(tmp_path):
    index = make_with_masks(tmp_path)
    options = TRAIN | {
        "min_sizes": (0,),
        "flip_prob": 0.0,
        "with_masks": True,
        "crop": Crop("absolute", (16, 24)),
    }
    whole = take(train_loader(index, **(options | {"crop": None})), 5)
    num_boxes = set()
    for cropped, full in zip(take(train_loader(index, **options), 5), whole, strict=True):
        assert cropped.image_ids.tolist() == full.image_ids.tolist()
        assert cropped.sizes.tolist() == [[16, 24]] * 4
        assert cropped.original_sizes.tolist() == full.original_sizes.tolist()
        for b in range(4):
            places = full.images[b].unfold(1, 16, 1).unfold(2, 24, 1)
            alike = (places == cropped.images[b, :, None, None, :16, :24]).flatten(3).all(3).all(0)
            ((top, left),) = alike.nonzero().tolist()
            expected = full.targets.boxes[b, full.targets.valid[b]] - torch.tensor([left, top, left, top])
            expected = expected.clamp(min=0).minimum(torch.tensor([24, 16, 24, 16]))
            inside = (expected[:, 2:] > expected[:, :2]).all(1)
            valid = cropped.targets.valid[b]
            assert cropped.targets.boxes[b, valid].tolist() == expected[inside].tolist()
            num_boxes.add(int(valid.sum()))
    assert 0 in num_boxes  # An image whose part has no object is used all the same.
    assert max(num_boxes) == 2
    targets = cropped.targets
    masks = rasterize_on_grid(
        targets.outlines.edges,
        targets.outlines.parts,
        targets.outlines.num_parts,
        cropped.sizes,
        (32, 32),
        (32, 32),
    )
    for mask, (x1, y1, x2, y2), valid in zip(
        masks.flatten(0, 1), targets.boxes.flatten(0, 1).int().tolist(), targets.valid.flatten(), strict=True
    ):
        expected_mask = torch.zeros(32, 32, dtype=torch.bool)
        expected_mask[y1:y2, x1:x2] = bool(valid)
        assert torch.equal(mask, expected_mask)


def test_crop_starts_anywhere(index):
    options = TRAIN | {"crop": Crop("relative_range", (0.5, 0.5))}
    batches = take(train_loader(index, **options), 5)
    assert same(take(train_loader(index, **options, start=3), 2), batches[3:])
    assert not same(batches, take(train_loader(index, **TRAIN), 5))


def test_rare_classes_come_more_often(tmp_path):
    annotations = [annotation(k, k, category=3) for k in range(1, 9)] + [annotation(20, 8, category=1)]
    annotations.append(annotation(21, 7, category=7, iscrowd=1))
    images = [image_record(k) for k in range(1, 10)]
    index = open_coco(write_coco(tmp_path, images, annotations))
    options = TRAIN | {"repeat_threshold": 0.5}
    ids = [i for batch in take(train_loader(index, **options), 40) for i in batch.image_ids.tolist()]
    # Dogs are in one of the eight images with objects: factor 2; the cow is a crowd.
    assert ids.count(8) in range(34, 38)
    assert all(ids.count(k) in range(16, 20) for k in range(1, 8))
    assert 9 not in ids
    batches = take(train_loader(index, **options), 6)
    assert same(take(train_loader(index, **options, start=4), 2), batches[4:])


def test_bgr_is_rgb_reversed(index):
    rgb, bgr = (take(train_loader(index, **TRAIN, image_format=f), 2) for f in ("RGB", "BGR"))
    assert all(torch.equal(one.images.flip(1), other.images) for one, other in zip(rgb, bgr, strict=True))


def test_float64_boxes(index):
    batch = take(train_loader(index, **TRAIN, dtype=torch.float64), 1)[0]
    assert batch.targets.boxes.dtype == torch.float64


def test_filter_leaves_out_images_without_objects(index):
    seen = {i for batch in take(train_loader(index, **TRAIN), 30) for i in batch.image_ids.tolist()}
    assert seen == set(range(1, 13)) - {5, 6}
    batches = take(train_loader(index, **TRAIN, filter_empty=False), 30)
    assert {i for batch in batches for i in batch.image_ids.tolist()} == set(range(1, 13))


def test_images_without_objects_have_one_empty_slot(index):
    for batch in take(train_loader(index, **TRAIN | {"batch_size": 1}, filter_empty=False), 40):
        if batch.image_ids.item() in (5, 6):
            assert batch.targets.valid.tolist() == [[False]]
            assert batch.targets.boxes.tolist() == [[[0, 0, 0, 0]]]


def test_aspect_groups_do_not_mix(index):
    def mixed(batch: Batch) -> bool:
        return len(set((batch.sizes[:, 1] > batch.sizes[:, 0]).tolist())) > 1

    assert not any(mixed(batch) for batch in take(train_loader(index, **TRAIN), 20))
    assert any(mixed(batch) for batch in take(train_loader(index, **TRAIN, aspect_ratio_grouping=False), 20))


def test_workers_change_nothing(index):
    expected = take(train_loader(index, **TRAIN), 9)
    for num_workers in (1, 2):
        assert same(take(train_loader(index, **TRAIN | {"num_workers": num_workers}), 9), expected)
    tests = list(test_loader(index, **TEST))
    assert same(list(test_loader(index, **TEST | {"num_workers": 2})), tests)


def test_starts_anywhere(index):
    expected = take(train_loader(index, **TRAIN), 12)
    for start in (1, 5, 11):
        assert same(take(train_loader(index, **TRAIN, start=start), 12 - start), expected[start:])


@pytest.mark.parametrize(("world_size", "steps"), [(2, 1), (4, 1), (1, 2), (2, 2)])
def test_images_do_not_depend_on_ranks_or_accumulation(index, world_size, steps):
    def rows(batch: Batch) -> list[tuple[int, bytes, list[float]]]:
        triples = zip(
            batch.images, batch.sizes.tolist(), batch.targets.boxes, batch.targets.valid, strict=True
        )
        crops = [
            (image[:, :h, :w].numpy().tobytes(), boxes[valid].tolist())
            for image, (h, w), boxes, valid in triples
        ]
        return list(zip(batch.image_ids.tolist(), *zip(*crops, strict=True), strict=True))

    parts = [
        take(
            train_loader(
                index,
                **TRAIN | {"batch_size": 4 // (world_size * steps), "world_size": world_size, "rank": rank},
                num_accumulation_steps=steps,
            ),
            5 * steps,
        )
        for rank in range(world_size)
    ]
    for k, whole in enumerate(take(train_loader(index, **TRAIN), 5)):
        joined = [row for s in range(steps) for part in parts for row in rows(part[k * steps + s])]
        assert joined == rows(whole)


def test_loading_leaves_the_default_generator_alone(index):
    torch.manual_seed(5)
    take(train_loader(index, **TRAIN), 3)
    list(test_loader(index, **TEST))
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))


def test_nothing_to_train_on(tmp_path):
    index = open_coco(write_coco(tmp_path, [image_record(1)], []))
    with pytest.raises(DataError, match="a set: none of its 1 image has an object to train on"):
        train_loader(index, **TRAIN)


@pytest.mark.parametrize("world_size", [1, 2, 5])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_test_images_come_once_over_all_ranks(index, world_size, batch_size):
    options = TEST | {"world_size": world_size, "batch_size": batch_size}
    loaders = [test_loader(index, **options | {"rank": rank}) for rank in range(world_size)]
    ranks = [list(loader) for loader in loaders]
    assert [len(loader) for loader in loaders] == [len(batches) for batches in ranks]
    batches = [batch for rank in ranks for batch in rank]
    assert sorted(i for batch in batches for i in batch.image_ids.tolist()) == list(range(1, 13))


def test_batching_adds_no_padding_in_testing(index):
    single = {b.image_ids.item(): b for b in test_loader(index, **TEST | {"batch_size": 1})}
    batches = list(test_loader(index, **TEST))
    assert max(len(batch.image_ids) for batch in batches) > 1
    for batch in batches:
        for b, image_id in enumerate(batch.image_ids.tolist()):
            alone = single[image_id]
            assert torch.equal(batch.images[b], alone.images[0])
            valid = batch.targets.valid[b]
            assert torch.equal(batch.targets.boxes[b][valid], alone.targets.boxes[0][alone.targets.valid[0]])


def test_test_set_without_annotations(tmp_path):
    index = open_coco(write_coco(tmp_path, [image_record(1)], None))
    (batch,) = test_loader(index, **TEST)
    assert batch.targets.valid.tolist() == [[False]]


def test_training_has_no_length(index):
    with pytest.raises(TypeError, match="no end"):
        len(train_loader(index, **TRAIN))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_bad_image_fails_by_name(index, num_workers):
    index.path(3).write_bytes(b"broken")
    options = {"num_workers": num_workers}
    with pytest.raises(ImageError) as caught:
        take(train_loader(index, **TRAIN | options), 40)
    assert (
        str(caught.value) == f"cannot read image {index.path(3)}: it is empty, or no image of a known format"
    )
    with pytest.raises(ImageError, match=r"004\.png"):
        list(test_loader(index, **TEST | options))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_bad_image_is_replaced_by_the_same_other_one(tmp_path, num_workers):
    good, bad = make(tmp_path / "good"), make(tmp_path / "bad")
    bad.path(3).write_bytes(b"broken")
    options = TRAIN | {"num_workers": num_workers, "on_bad_image": "skip"}
    batches = take(train_loader(bad, **options), 20)
    num_skipped = 0
    for batch, whole in zip(batches, take(train_loader(good, **TRAIN), 20), strict=True):
        ids, expected = batch.image_ids.tolist(), whole.image_ids.tolist()
        assert 4 not in ids
        assert len(batch.skipped) == expected.count(4)
        assert [a == b for a, b in zip(ids, expected, strict=True)] == [b != 4 for b in expected]
        assert all("004.png" in message for message in batch.skipped)
        wide = batch.original_sizes[:, 1] > batch.original_sizes[:, 0]
        assert wide.all() or not wide.any()
        num_skipped += len(batch.skipped)
    assert num_skipped > 3
    assert same(take(train_loader(bad, **options, start=7), 13), batches[7:])


def test_bad_image_without_its_like_is_replaced_by_another(tmp_path):
    index = open_coco(
        write_coco(
            tmp_path, [image_record(1, 64, 48), image_record(2, 48, 64)], [annotation(1, 1), annotation(2, 2)]
        )
    )
    index.path(0).write_bytes(b"broken")
    batches = take(train_loader(index, **TRAIN, on_bad_image="skip"), 4)
    assert {i for batch in batches for i in batch.image_ids.tolist()} == {2}


def test_too_many_bad_images_are_an_error_even_when_skipping(index):
    for i in range(len(index)):
        index.path(i).write_bytes(b"broken")
    with pytest.raises(
        ImageError, match=r"cannot replace an image: \d+ were tried and all are unfit; the first: cannot read"
    ):
        take(train_loader(index, **TRAIN, on_bad_image="skip"), 1)


def test_bad_test_image_is_left_out_and_named(index, caplog):
    index.path(3).write_bytes(b"broken")
    batches = list(test_loader(index, **TEST, on_bad_image="skip"))
    ids = [i for batch in batches for i in batch.image_ids.tolist()]
    assert sorted(ids) == [k for k in range(1, 13) if k != 4]
    assert [text for batch in batches for text in batch.skipped if "004.png" in text]
    with caplog.at_level(logging.WARNING):
        single = list(test_loader(index, **TEST | {"batch_size": 1}, on_bad_image="skip"))
    assert len(single) == 11
    assert "004.png" in caplog.text


def test_size_that_differs_from_the_files(tmp_path):
    path = write_coco(tmp_path, [image_record(1, 64, 48)], [annotation(1, 1)])
    Image.new("RGB", (48, 64)).save(tmp_path / "train" / "001.png")
    with pytest.raises(ImageError) as caught:
        take(train_loader(open_coco(path), **TRAIN), 1)
    text = str(caught.value)
    assert "001.png (id 1) is 48 x 64 pixels, but" in text
    assert f"{path} says 64 x 48" in text


def test_size_is_that_of_the_upright_picture(tmp_path):
    path = write_coco(tmp_path, [image_record(1, 64, 48)], [annotation(1, 1)])
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (48, 64)).save(tmp_path / "train" / "001.png", exif=exif)
    assert take(train_loader(open_coco(path), **TRAIN), 1)[0].original_sizes[0].tolist() == [48, 64]


def test_parts_can_be_sent_to_a_fresh_process(index):
    prepare = Preparation(index, "BGR", 64, torch.float32)
    copy = pickle.loads(pickle.dumps(prepare))
    one, other = (p(6, min_size=40, flip=True) for p in (prepare, copy))
    assert torch.equal(one.image, other.image)
    assert torch.equal(one.boxes, other.boxes)


@pytest.mark.parametrize("channels_last", [False, True])
def test_layout_and_canvases_change_no_pixel(index, channels_last):
    layout = Layout(channels_last=channels_last)
    plain = take(train_loader(index, **TRAIN), 6)
    for batch, other in zip(plain, take(train_loader(index, **TRAIN, layout=layout), 6), strict=True):
        assert torch.equal(batch.images, other.images)
        assert other.canvas is None
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        assert other.images.is_contiguous(memory_format=memory_format)
    canvases = static_canvases((32, 40), 64)
    layout = replace(layout, canvases=canvases)
    for batch, other in zip(plain, take(train_loader(index, **TRAIN, layout=layout), 6), strict=True):
        height, width = batch.images.shape[2:]
        assert other.images.shape[2:] in canvases
        assert other.canvas.tolist() == [height, width]
        assert torch.equal(other.images[..., :height, :width], batch.images)
        assert other.images.sum() == batch.images.sum()
        assert torch.equal(other.targets.boxes, batch.targets.boxes)


class TestDecodingInTheTrainer:
    """On the CPU: the same batches to the last bit, whoever decodes."""

    def make(self, root: Path) -> AnnotationIndex:
        """Six JPEGs, of which one is turned by its tag and one is grey, and two PNGs; all have a box."""
        records = [image_record(k, 64, 48) for k in range(1, 9)]
        for record in records[:6]:
            record["file_name"] = f"{record['id']:03d}.jpg"
        path = write_coco(root, records, [annotation(k, k, (k, 2 * k, 9, 6)) for k in range(1, 9)])
        exif = Image.Exif()
        exif[274] = 8
        turned, grey = root / "train" / "002.jpg", root / "train" / "003.jpg"
        Image.open(turned).rotate(-90, expand=True).save(turned, exif=exif)
        Image.open(grey).convert("L").save(grey)
        return open_coco(path)

    def break_tables(self, path: Path) -> None:
        """Damage that the header does not show."""
        content = path.read_bytes()
        place = content.index(b"\xff\xc4") + 5
        path.write_bytes(content[:place] + b"\xff" * 16 + content[place + 16 :])

    @pytest.mark.parametrize("num_workers", [0, 2])
    def test_same_batches(self, tmp_path, num_workers):
        index = self.make(tmp_path)
        options = TRAIN | {"batch_size": 3, "num_workers": num_workers, "crop": Crop("relative", (0.8, 0.7))}
        plain = take(train_loader(index, **options), 8)
        assert {i for batch in plain for i in batch.image_ids.tolist()} == set(range(1, 9))
        assert same(plain, take(train_loader(index, **options, decode_on=torch.device("cpu")), 8))

    def test_damaged_file_fails_by_name(self, tmp_path):
        index = self.make(tmp_path)
        self.break_tables(index.path(3))
        with pytest.raises(ImageError, match=r"004\.jpg"):
            take(train_loader(index, **TRAIN, decode_on=torch.device("cpu")), 2)

    def test_damaged_file_is_replaced_by_the_batchs_next(self, tmp_path):
        index = self.make(tmp_path)
        options = TRAIN | {"batch_size": 8, "on_bad_image": "skip", "decode_on": torch.device("cpu")}
        whole = take(train_loader(index, **options), 1)[0]
        self.break_tables(index.path(3))
        batch = take(train_loader(index, **options), 1)[0]
        ids = whole.image_ids.tolist()
        place = ids.index(4)
        substitute = (place + 1) % 8
        taken = [substitute if i == place else i for i in range(8)]
        assert batch.image_ids.tolist() == [ids[i] for i in taken]
        assert torch.equal(batch.images, whole.images[taken])
        assert torch.equal(batch.targets.boxes, whole.targets.boxes[taken])
        assert torch.equal(batch.sizes, whole.sizes[taken])
        (message,) = batch.skipped
        assert "004.jpg" in message

    def test_file_that_is_cut_short_is_replaced_by_another_of_the_set(self, tmp_path):
        index = self.make(tmp_path)
        index.path(3).write_bytes(index.path(3).read_bytes()[:-40])
        options = TRAIN | {"on_bad_image": "skip"}
        plain = take(train_loader(index, **options), 4)
        assert any(batch.skipped for batch in plain)
        assert same(plain, take(train_loader(index, **options, decode_on=torch.device("cpu")), 4))

    def test_batch_without_any_whole_file_is_an_error(self, tmp_path):
        index = self.make(tmp_path)
        for i in range(6):
            self.break_tables(index.path(i))
        options = TRAIN | {"batch_size": 1, "on_bad_image": "skip"}
        with pytest.raises(ImageError, match=r"\.jpg"):
            take(train_loader(index, **options, decode_on=torch.device("cpu")), 8)


def test_workers_survive_the_trainers_signals(index):
    others = multiprocessing.active_children()
    batches = iter(train_loader(index, **TRAIN | {"num_workers": 2}))
    for _ in range(2):
        next(batches)  # one of each worker: both are ready
    workers = [child for child in multiprocessing.active_children() if child not in others]
    assert len(workers) == 2
    for worker in workers:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            os.kill(worker.pid, number)
    for _ in range(12):
        next(batches)
    assert all(worker.is_alive() for worker in workers)
    batches.close()
    for worker in workers:
        worker.join(20)
    assert not any(worker.is_alive() for worker in workers)


@pytest.mark.parametrize("data_set", ["made", *further("nasty")], indirect=True)
def test_nasty_set_with_skipping(data_set):
    index = load_coco(data_set / "instances.json", data_set / "images", name="nasty")
    batches = list(test_loader(index, **TEST | {"min_size": 96, "max_size": 160}, on_bad_image="skip"))
    names = {index.image(i).id: index.file_name(i) for i in range(len(index))}
    read = sorted(names[number] for batch in batches for number in batch.image_ids.tolist())
    assert read == sorted(set(NASTY) - set(names_of(NOTHING)))
    options = TRAIN | {"min_sizes": (96,), "max_size": 160, "on_bad_image": "skip"}
    batches = take(train_loader(index, **options, filter_empty=False), 20)
    assert any(batch.skipped for batch in batches)
    with pytest.raises(ImageError, match=r"truncated|empty|not_an_image|bomb"):
        take(train_loader(index, **options | {"on_bad_image": "fail"}, filter_empty=False), 20)


@pytest.mark.parametrize("num_bytes", [89, 90])
def test_a_folder_for_sockets_with_too_long_a_path(monkeypatch, tmp_path, num_bytes):
    monkeypatch.chdir(tmp_path)
    folder = "x" * num_bytes
    Path(folder).mkdir()
    monkeypatch.setattr("lgd.data.workers.get_temp_dir", lambda: folder)
    name = arbitrary_address("AF_UNIX").rpartition("/")[2]
    fits = num_bytes == 89
    refusal = nullcontext() if fits else pytest.raises(OSError, match="too long")
    with socket.socket(socket.AF_UNIX) as probe, refusal:
        probe.bind(f"{folder}/{name}")
    says = r"TMPDIR .* is a path 1 byte too long .*; set a shorter one, or DATALOADER\.NUM_WORKERS 0"
    with nullcontext() if fits else pytest.raises(DataError, match=says), WorkerContext().starting():
        pass
