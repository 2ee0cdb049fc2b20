"""Collecting detections and scoring them, with a student that detects what the test wants."""

from dataclasses import replace

import pytest
import torch

from lgd.evaluation.masks import encode_masks, paste_masks
from lgd.evaluation.predictions import Predictions
from lgd.evaluation.score import score
from lgd.inference.detect import detect
from lgd.inference.test_sets import TestSet, draw_examples
from lgd.structures import Batch, Detections, Outlines, Targets
from tests.data.sets import annotation, image_record, open_coco, write_coco

CATEGORY_IDS = (1, 3, 7)
CPU = torch.device("cpu")


class Student:
    """Finds what it is given by image id, the boxes moved by its features."""

    def __init__(self, detections):
        self.detections = detections

    def extract_features(self, batch):
        return {"p3": 0.0}

    def detect(self, features, batch):
        found = [self.detections[image_id] for image_id in batch.image_ids.tolist()]
        return [replace(each, boxes=each.boxes + features["p3"]) for each in found]


def shift(features, batch):
    return {"p3": features["p3"] + 2}


def make_batch(image_ids, **targets):
    """Images of 48 x 64 pixels, shown at half that on a canvas of 32 x 32."""
    count = len(image_ids)
    boxes = torch.tensor([[2.0, 3.0, 12.0, 8.0], [0, 0, 0, 0]]).expand(count, 2, 4)
    labels, valid = torch.ones((count, 2), dtype=torch.int64), torch.tensor([[True, False]] * count)
    return Batch(
        images=torch.full((count, 3, 32, 32), 128, dtype=torch.uint8),
        sizes=torch.tensor([[24, 32]] * count),
        original_sizes=torch.tensor([[48, 64]] * count),
        image_ids=torch.tensor(image_ids),
        targets=Targets(boxes, labels, valid, **targets),
    )


def detections(num, seed, with_masks=True):
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand((num, 2), generator=generator) * 30
    boxes = torch.cat([corners, corners + 4 + corners.flip(-1) / 2], dim=1)
    scores = torch.rand(num, generator=generator).sort(descending=True).values
    masks = torch.rand((num, 28, 28), generator=generator) if with_masks else None
    return Detections(boxes, scores, torch.arange(num) % 3, masks)


def infer(found, batches, **more):
    return detect(Student(found), batches, CATEGORY_IDS, device=CPU, **more)


def test_masks_are_pasted_at_the_original_size():
    found = {9: detections(5, 0), 4: detections(3, 1)}
    inference = infer(found, [make_batch([9, 4])], teach=shift)
    assert inference.with_masks
    for name, moved in (("student", 0), ("teacher", 2)):
        results = inference.found[name].to_results()
        assert [result["image_id"] for result in results] == [4] * 3 + [9] * 5
        expected = [
            mask
            for image in (4, 9)
            for mask in encode_masks(paste_masks(found[image].masks, found[image].boxes + moved, (48, 64)))
        ]
        assert [result["segmentation"] for result in results] == expected
        assert [result["category_id"] for result in results[:3]] == [1, 3, 7]


def test_cudnn_tries_no_algorithms_out(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    seen = []

    def note(features, batch):
        seen.append(torch.backends.cudnn.benchmark)
        return features

    infer({1: detections(1, 0)}, [make_batch([1])], teach=note)
    assert seen == [False]
    assert torch.backends.cudnn.benchmark


def test_no_detections_still_tell_whether_there_are_masks():
    assert infer({1: detections(0, 0)}, [make_batch([1])]).with_masks
    without = infer({1: detections(2, 0, with_masks=False)}, [make_batch([1])])
    assert not without.with_masks
    assert "segmentation" not in without.found["student"].to_results()[0]


def test_examples_are_of_the_student_and_at_the_size_of_their_image():
    edges = torch.zeros((2, 2, 4, 4))
    edges[:, 0] = torch.tensor([[2.0, 3, 12, 3], [12, 3, 12, 8], [12, 8, 2, 8], [2, 8, 2, 3]])
    batch = make_batch([1, 2], outlines=Outlines(edges, torch.zeros((2, 2, 4), dtype=torch.int64), 1))
    found = {i: detections(4, i) for i in (1, 2, 3, 4)}
    inference = infer(found, [batch, make_batch([3, 4])], teach=shift, num_examples=3)
    assert [example.image_id for example in inference.examples] == [1, 2, 3]
    first, _, last = inference.examples
    assert first.image.shape == (3, 24, 32)
    assert torch.equal(first.detections.boxes, found[1].boxes / 2)
    assert torch.equal(first.detections.masks, found[1].masks)
    assert first.gt_boxes.tolist() == [[2, 3, 12, 8]]
    assert first.gt_outlines.edges.shape == (1, 1, 4, 4)
    assert last.gt_outlines is None
    assert infer(found, [batch], num_examples=0).examples == []


def test_examples_are_drawn_with_masks(tmp_path):
    path = write_coco(tmp_path, [image_record(1)], [annotation(1, 1)])
    found = {1: replace(detections(1, 1), scores=torch.ones(1), boxes=torch.tensor([[8.0, 8.0, 40.0, 40.0]]))}
    inference = infer(found, [make_batch([1])], num_examples=1)
    test_set = TestSet("val", open_coco(path), list)
    (with_masks,) = draw_examples(test_set, inference, "BGR")
    (example,) = inference.examples
    example = replace(example, detections=replace(example.detections, masks=None))
    (without,) = draw_examples(test_set, replace(inference, examples=[example]), "BGR")
    half = with_masks.shape[2] // 2
    assert torch.equal(with_masks[..., :half], without[..., :half])
    assert not torch.equal(with_masks[..., half:], without[..., half:])


@pytest.mark.parametrize("backend", ["hotcoco", "pycocotools"])
def test_score_measures_boxes_and_masks(tmp_path, backend):
    """The detection has the object's box, but half its mask."""
    polygon = [4, 6, 24, 6, 24, 16, 4, 16]
    path = write_coco(
        tmp_path, [image_record(1), image_record(2)], [annotation(1, 1, area=200, segmentation=[polygon])]
    )
    mask = torch.ones((1, 28, 28))
    mask[:, :, 14:] = 0
    found = Detections(torch.tensor([[4.0, 6.0, 24.0, 16.0]]), torch.ones(1), torch.tensor([1]), mask)
    inference = infer({1: found, 2: detections(0, 0)}, [make_batch([2]), make_batch([1])])
    metrics = score(open_coco(path), inference.found, with_masks=True, backend=backend)["student"]
    assert list(metrics) == ["bbox", "segm"]
    assert metrics["bbox"]["AP"] == pytest.approx(100)
    assert metrics["segm"]["AP"] == pytest.approx(10)  # an IoU of 0.5
    assert metrics["segm"]["AP-cat"] == pytest.approx(10)
    alone = score(open_coco(path), inference.found, with_masks=False, backend=backend)
    assert alone["student"] == {"bbox": metrics["bbox"]}


def test_score_of_a_set_without_annotations_or_masks(tmp_path):
    path = write_coco(tmp_path, [image_record(1)], None)
    nothing = {"student": Predictions.from_results([])}
    metrics = score(open_coco(path), nothing, with_masks=True, backend="hotcoco")
    assert metrics == {"student": {"bbox": None, "segm": None}}
    path = write_coco(tmp_path, [image_record(1)], [annotation(1, 1)], split="val")
    metrics = score(open_coco(path, "val"), nothing, with_masks=True, backend="hotcoco")["student"]
    assert metrics["bbox"]["AP"] == 0
    assert metrics["segm"] is None
