"""Mask AP against hand-computed values, pycocotools on the same file, and one backend against the other."""

import json
import logging

import numpy as np
import pytest
import torch
from hotcoco import mask as mask_tools

from lgd.evaluation.ground_truth import ground_truth_of
from lgd.evaluation.masks import encode_masks
from tests.evaluation.reference import open_index
from tests.evaluation.test_coco import (
    TWELVE,
    assert_same,
    both_backends,
    detection,
    evaluate,
    write_ground_truth,
)
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


def both(path, results):
    """The metrics of masks by both backends, which are pycocotools' own."""
    return both_backends(path, results, iou_type="segm")


def detect_near(path, random, share):
    """Detections with masks: a share of the objects with their outlines worn, at scores with ties."""
    ground_truth = json.loads(path.read_text())
    sizes = {image["id"]: (image["height"], image["width"]) for image in ground_truth["images"]}
    category_ids = [category["id"] for category in ground_truth["categories"]]
    results = []
    for annotation in ground_truth["annotations"]:
        if random.random() > share or not annotation.get("segmentation"):
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
    return results


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
    path = random_ground_truth(tmp_path, seed)
    results = detect_near(path, np.random.default_rng(seed), 0.8)
    metrics, other = (
        evaluate(path, results, iou_type="segm", backend=backend) for backend in BACKENDS
    )  # pycocotools alone has no way with objects that have no mask
    assert_same(metrics, other)
    assert all(metrics[key] is not None and 0 < metrics[key] < 100 for key in TWELVE)
    assert metrics["AP-bird"] is None


def test_masks_are_those_of_the_file(tmp_path):
    path = random_ground_truth(tmp_path, 3)
    content = json.loads(path.read_text())
    content["annotations"] = [each for each in content["annotations"] if each["segmentation"]]
    path.write_text(json.dumps(content))
    assert 0 < both(path, detect_near(path, np.random.default_rng(3), 0.8))["AP"] < 100


@pytest.mark.parametrize("data_set", ["synthetic", *further("nuclei", "coco_mini")], indirect=True)
def test_backends_agree_on_whole_sets(tmp_path, data_set):
    content = json.loads((data_set / "annotations" / "instances_val.json").read_text())
    used = [image["id"] for image in content["images"]][:20]
    content["annotations"] = [each for each in content["annotations"] if each["image_id"] in used]
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    metrics = both(path, detect_near(path, np.random.default_rng(0), 0.7))
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
    metrics = evaluate(path, results, iou_type="segm", backend=backend)
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
    results = [
        found(1, 1, rectangle(300, 300, 5, 5), 0.9, box=(300, 300, 90, 90)),
        found(1, 1, rectangle(10, 10, 20, 20), 0.8, box=(300, 300, 90, 90)),
    ]
    metrics = both(path, results)
    assert metrics["APs"] == pytest.approx(50)
    assert metrics["APm"] is None


def test_detections_in_a_crowd_count_neither_way(tmp_path):
    crowd = {"segmentation": uncompress(rectangle(0, 0, 200, 200)), "area": 40000, "iscrowd": 1}
    alone = {"segmentation": [polygon(300, 300, 20, 20)], "area": 400}
    path = write_ground_truth(tmp_path, [(1, 1, (0, 0, 200, 200), crowd), (1, 1, (300, 300, 20, 20), alone)])
    inside = [found(1, 1, rectangle(x, 20, 30, 30), 0.9) for x in (10, 60, 110)]
    right = [found(1, 1, rectangle(300, 300, 20, 20), 0.5)]
    assert both(path, inside + right)["AP"] == pytest.approx(100)
    outside = [found(1, 1, rectangle(400, 20, 30, 30), 0.9)]
    assert both(path, outside + right)["AP"] == pytest.approx(50)


def test_objects_without_a_mask_are_not_found_and_reported(tmp_path, caplog):
    whole = {"segmentation": [polygon(10, 10, 20, 20)]}
    absent = ({}, {"segmentation": []}, {"segmentation": [[1, 1, 9, 9]]}, {"segmentation": None})
    objects = [(1, 1, (10, 10, 20, 20), extra) for extra in (whole, *absent)]
    path = write_ground_truth(tmp_path, objects)
    results = [found(1, 1, rectangle(10, 10, 20, 20), 0.5)]
    with caplog.at_level(logging.WARNING):
        metrics, other = (evaluate(path, results, iou_type="segm", backend=backend) for backend in BACKENDS)
    assert_same(metrics, other)
    assert metrics["AR100"] == pytest.approx(100 / 5)
    assert f"{path}: 4 of 5 objects have no mask; for mask AP they count as not found" in caplog.text


def test_without_any_mask_there_is_no_mask_ap(tmp_path, caplog):
    path = write_ground_truth(tmp_path, [(1, 1, (1, 1, 9, 9), {})])
    with caplog.at_level(logging.INFO):
        assert evaluate(path, [], iou_type="segm") is None
    assert f"{path} has no masks: there is no mask AP" in caplog.text
    assert evaluate(path, [])["AP"] == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_predictions_are_zero(tmp_path, backend):
    extra = {"segmentation": [polygon(10, 10, 20, 20)]}
    path = write_ground_truth(tmp_path, [(1, 1, (10, 10, 20, 20), extra)])
    metrics = evaluate(path, [], iou_type="segm", backend=backend)
    assert (metrics["AP"], metrics["APl"], metrics["AP-dog"]) == (0, None, None)


def test_masks_do_not_change_box_ap(tmp_path):
    path = random_ground_truth(tmp_path, seed=2)
    annotations = json.loads(path.read_text())["annotations"]
    results = detect_near(path, np.random.default_rng(2), 0.8)
    for result, annotation in zip(results, annotations, strict=False):
        result |= {"bbox": annotation["bbox"], "image_id": annotation["image_id"]}
    without = [{key: value for key, value in each.items() if key != "segmentation"} for each in results]
    with_masks = both_backends(path, results)
    assert with_masks["AP"] > 0
    assert_same(with_masks, both_backends(path, without))


def test_polygons_that_training_drops_are_no_masks(tmp_path):
    extra = {"segmentation": [polygon(1, 1, 9, 9), [1, 1, 2, 2]], "keypoints": [1, 2, 3]}
    index = open_index(write_ground_truth(tmp_path, [(1, 1, (1, 1, 9, 9), extra)]))
    assert ground_truth_of(index, with_masks=False).masks is None
    (mask,) = ground_truth_of(index, with_masks=True).masks
    assert [each.tolist() for each in mask] == [polygon(1, 1, 9, 9)]
