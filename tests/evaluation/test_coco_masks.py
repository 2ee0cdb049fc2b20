"""Mask AP against hand-computed values, and the two backends against each other."""

import copy
import logging

import numpy as np
import pytest
import torch
from hotcoco import mask as mask_tools

from lgd.evaluation.coco import evaluate_coco, read_ground_truth
from lgd.evaluation.masks import encode_masks
from lgd.evaluation.predictions import Predictions
from tests.evaluation.test_coco import TWELVE, assert_same, detection, evaluate, write_ground_truth
from tests.samples import further

BACKENDS = ("hotcoco", "pycocotools")
HEIGHT, WIDTH = 480, 640


def rectangle(x, y, width, height):
    """A rectangle's mask as compressed RLE."""
    bitmap = torch.zeros((1, HEIGHT, WIDTH), dtype=torch.bool)
    bitmap[0, y : y + height, x : x + width] = True
    return encode_masks(bitmap)[0]


def polygon(x, y, width, height):
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def uncompress(rle):
    """The same mask as a list of counts."""
    pixels = mask_tools.decode(rle).flatten(order="F")
    borders = np.flatnonzero(np.diff(pixels, prepend=0)).tolist()
    return {"size": rle["size"], "counts": np.diff([0, *borders, pixels.size]).tolist()}


def found(image, category, mask, score, box=(0, 0, 1, 1)):
    return {**detection(image, category, box, score), "segmentation": mask}


def evaluate_found(ground_truth, results, **more):
    return evaluate_coco(ground_truth, Predictions.from_results(results), **more)


def both_backends(ground_truth, results, category_ids, **more):
    kwargs = {"class_names": [f"class {c}" for c in category_ids], "category_ids": category_ids, **more}
    before = copy.deepcopy((ground_truth, results))
    first, second = (
        evaluate_found(ground_truth, results, iou_type="segm", backend=backend, gt_name="the set", **kwargs)
        for backend in BACKENDS
    )
    assert (ground_truth, results) == before
    assert_same(first, second)
    return first


def detect_near(ground_truth, random, share):
    """Detections with masks: a share of the objects with their outlines worn, at scores with ties."""
    sizes = {image["id"]: (image["height"], image["width"]) for image in ground_truth["images"]}
    category_ids = [category["id"] for category in ground_truth["categories"]]
    results = []
    for annotation in ground_truth["annotations"]:
        if random.random() > share or "segmentation" not in annotation:
            continue
        height, width = sizes[annotation["image_id"]]
        mask = annotation["segmentation"]
        parts = mask_tools.frPyObjects(mask, height, width) if not is_compressed(mask) else mask
        bitmap = mask_tools.decode(mask_tools.merge(parts) if isinstance(parts, list) else parts)
        bitmap = np.roll(bitmap, random.integers(-3, 4, 2), (0, 1)) & (random.random(bitmap.shape) > 0.05)
        encoded = encode_masks(torch.from_numpy(np.ascontiguousarray(bitmap)).bool()[None])[0]
        category = annotation["category_id"] if random.random() < 0.8 else int(random.choice(category_ids))
        box = random.uniform(0, 300, 4).tolist()  # of no use: it shall not be looked at
        results.append(found(annotation["image_id"], category, encoded, round(random.random(), 2), box))
    return results, category_ids


def is_compressed(mask):
    return isinstance(mask, dict) and isinstance(mask["counts"], str)


def random_ground_truth(folder, seed):
    """Polygons of one and two parts, in and beyond the image, RLE of both kinds, crowds, no mask at all."""
    random = np.random.default_rng(seed)
    objects = []
    for _ in range(120):
        x, y = random.integers(-20, 400, 2).tolist()
        width, height = np.exp(random.uniform(np.log(4), np.log(200), 2)).astype(int).tolist()
        box = (max(x, 0), max(y, 0), width, height)
        star = polygon(x, y, width, height) + random.uniform(-3, 3, 8).round(2)
        mask = [
            [star.tolist()],
            [star.tolist(), (star + width // 3).tolist()],
            rectangle(*box),
            uncompress(rectangle(*box)),
            [],
        ][random.choice(5, p=[0.3, 0.3, 0.18, 0.18, 0.04])]
        area = float(width * height * random.uniform(0.5, 1))
        crowd = int(isinstance(mask, dict) and random.random() < 0.3)
        extra = {"segmentation": mask, "area": area, "iscrowd": crowd}
        objects.append((int(random.integers(1, 11)), int(random.choice([3, 7])), box, extra))
    return write_ground_truth(folder, objects, [(3, "cat"), (7, "dog"), (9, "bird")], range(1, 13))


@pytest.mark.parametrize("seed", [0, 1])
def test_backends_agree_on_random_masks(tmp_path, seed):
    ground_truth = read_ground_truth(random_ground_truth(tmp_path, seed), with_masks=True)
    results, category_ids = detect_near(ground_truth, np.random.default_rng(seed), 0.8)
    metrics = both_backends(ground_truth, results, category_ids)
    assert all(metrics[key] is not None and 0 < metrics[key] < 100 for key in TWELVE)
    assert metrics["AP-class 9"] is None
    subset = both_backends(ground_truth, results, category_ids, image_ids=[2, 3, 5])
    assert subset != metrics


@pytest.mark.parametrize("data_set", ["synthetic", *further("nuclei", "coco_mini")], indirect=True)
def test_backends_agree_on_whole_sets(data_set):
    path = data_set / "annotations" / "instances_val.json"
    ground_truth = read_ground_truth(path, with_masks=True)
    used = [image["id"] for image in ground_truth["images"]][:20]
    ground_truth["annotations"] = [a for a in ground_truth["annotations"] if a["image_id"] in used]
    results, category_ids = detect_near(ground_truth, np.random.default_rng(0), 0.7)
    metrics = both_backends(ground_truth, results, category_ids)
    assert 1 < metrics["AP"] < 99


@pytest.mark.parametrize("backend", BACKENDS)
def test_hand_computed(tmp_path, backend):
    """A cat's mask of IoU 0.75 in a box of no overlap; of two dogs one is found exactly, after a miss."""
    path = write_ground_truth(
        tmp_path,
        [
            (1, 1, (10, 10, 20, 20), {"segmentation": [polygon(10, 10, 20, 20)], "area": 400}),
            (2, 2, (0, 0, 100, 200), {"segmentation": rectangle(0, 0, 100, 200), "area": 20000}),
            (2, 2, (300, 300, 40, 40), {"segmentation": [polygon(300, 300, 40, 40)], "area": 1600}),
        ],
    )
    results = [
        found(1, 1, rectangle(10, 10, 20, 15), 0.9, box=(400, 400, 100, 100)),
        found(2, 2, rectangle(200, 200, 10, 10), 0.8, box=(0, 0, 100, 200)),
        found(2, 2, rectangle(0, 0, 100, 200), 0.7),
    ]
    metrics = evaluate(
        path, results, iou_type="segm", backend=backend, class_names=["cat", "dog"], category_ids=[1, 2]
    )
    dog = 50 * 51 / 101  # recall 0.5 reaches 51 of the 101 points, at precision 1/2
    assert metrics["AP-cat"] == pytest.approx(100 * 6 / 10)  # thresholds 0.50 to 0.75
    assert metrics["AP-dog"] == pytest.approx(dog)
    assert metrics["AP75"] == pytest.approx((100 + dog) / 2)
    # The cat's mask has 300 pixels; its box would have 10,000 and count as a large one, not as a small one.
    assert metrics["APs"] == pytest.approx(60)
    assert metrics["AR100"] == pytest.approx((60 + 50) / 2)
    assert list(metrics) == [*TWELVE, "AP-cat", "AP-dog"]


def test_area_of_a_detection_is_its_masks(tmp_path):
    """A false positive of medium box but small mask counts among the small only."""
    mask = [polygon(10, 10, 20, 20)]
    path = write_ground_truth(tmp_path, [(1, 1, (10, 10, 20, 20), {"segmentation": mask, "area": 400})])
    ground_truth = read_ground_truth(path, with_masks=True)
    results = [
        found(1, 1, rectangle(300, 300, 5, 5), 0.9, box=(300, 300, 90, 90)),
        found(1, 1, rectangle(10, 10, 20, 20), 0.8, box=(300, 300, 90, 90)),
    ]
    metrics = both_backends(ground_truth, results, [1])
    assert metrics["APs"] == pytest.approx(50)
    assert metrics["APm"] is None


def test_detections_in_a_crowd_count_neither_way(tmp_path):
    crowd = {"segmentation": uncompress(rectangle(0, 0, 200, 200)), "area": 40000, "iscrowd": 1}
    alone = {"segmentation": [polygon(300, 300, 20, 20)], "area": 400}
    path = write_ground_truth(tmp_path, [(1, 1, (0, 0, 200, 200), crowd), (1, 1, (300, 300, 20, 20), alone)])
    ground_truth = read_ground_truth(path, with_masks=True)
    inside = [found(1, 1, rectangle(x, 20, 30, 30), 0.9) for x in (10, 60, 110)]
    right = [found(1, 1, rectangle(300, 300, 20, 20), 0.5)]
    assert both_backends(ground_truth, inside + right, [1])["AP"] == pytest.approx(100)
    outside = [found(1, 1, rectangle(400, 20, 30, 30), 0.9)]
    assert both_backends(ground_truth, outside + right, [1])["AP"] == pytest.approx(50)


def test_objects_without_a_mask_are_not_found_and_reported(tmp_path, caplog):
    whole = {"segmentation": [polygon(10, 10, 20, 20)]}
    absent = ({}, {"segmentation": []}, {"segmentation": [[1, 1, 9, 9]]}, {"segmentation": None})
    objects = [(1, 1, (10, 10, 20, 20), extra) for extra in (whole, *absent)]
    ground_truth = read_ground_truth(write_ground_truth(tmp_path, objects), with_masks=True)
    results = [found(1, 1, rectangle(10, 10, 20, 20), 0.5)]
    with caplog.at_level(logging.WARNING):
        metrics = both_backends(ground_truth, results, [1])
    assert metrics["AR100"] == pytest.approx(100 / 5)
    assert "the set: 4 of 5 objects have no mask; for mask AP they count as not found" in caplog.text


def test_without_any_mask_there_is_no_mask_ap(tmp_path, caplog):
    ground_truth = read_ground_truth(
        write_ground_truth(tmp_path, [(1, 1, (1, 1, 9, 9), {})]), with_masks=True
    )
    kwargs = {"class_names": ["cat"], "category_ids": [1], "gt_name": "the set"}
    with caplog.at_level(logging.INFO):
        assert evaluate_found(ground_truth, [], iou_type="segm", **kwargs) is None
    assert "the set has no masks: there is no mask AP" in caplog.text
    assert evaluate_found(ground_truth, [], iou_type="bbox", **kwargs)["AP"] == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_predictions_are_zero(tmp_path, backend):
    extra = {"segmentation": [polygon(10, 10, 20, 20)]}
    path = write_ground_truth(tmp_path, [(1, 1, (10, 10, 20, 20), extra)])
    kwargs = {"backend": backend, "class_names": ["cat", "dog"], "category_ids": [1, 2]}
    metrics = evaluate(path, [], iou_type="segm", **kwargs)
    assert (metrics["AP"], metrics["APl"], metrics["AP-dog"]) == (0, None, None)


def test_masks_do_not_change_box_ap(tmp_path):
    path = random_ground_truth(tmp_path, seed=2)
    with_masks, without = (read_ground_truth(path, with_masks=flag) for flag in (True, False))
    results, category_ids = detect_near(with_masks, np.random.default_rng(2), 0.8)
    for result, annotation in zip(results, with_masks["annotations"], strict=False):
        result |= {"bbox": annotation["bbox"], "image_id": annotation["image_id"]}
    names = ["cat", "dog", "bird"]
    all_metrics = [
        evaluate_found(
            ground_truth, results, backend=backend, class_names=names, category_ids=category_ids, gt_name="x"
        )
        for ground_truth in (with_masks, without)
        for backend in BACKENDS
    ]
    assert all_metrics[0]["AP"] > 0
    for metrics in all_metrics[1:]:
        assert_same(all_metrics[0], metrics)


def test_only_what_is_needed_is_read(tmp_path):
    extra = {"segmentation": [polygon(1, 1, 9, 9), [1, 1, 2, 2]], "keypoints": [1, 2, 3]}
    path = write_ground_truth(tmp_path, [(1, 1, (1, 1, 9, 9), extra)])
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9], "area": 81, "iscrowd": 0}
    assert read_ground_truth(path, with_masks=False)["annotations"] == [annotation]
    annotation["segmentation"] = [polygon(1, 1, 9, 9)]
    assert read_ground_truth(path, with_masks=True)["annotations"] == [annotation]
