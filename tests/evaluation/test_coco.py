"""AP and AR against hand-computed values, pycocotools on the same file, and one backend against the other."""

import copy
import json
import logging
import sys

import numpy as np
import pytest

from lgd.config.values import ConfigError
from lgd.evaluation.coco import evaluate_coco
from lgd.evaluation.ground_truth import ground_truth_of, numbered
from lgd.evaluation.predictions import Predictions
from tests.evaluation.reference import open_index, reference_stats

TWELVE = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
BACKENDS = ("hotcoco", "pycocotools")


def write_ground_truth(folder, boxes, categories=((1, "cat"), (2, "dog")), images=(1, 2)):
    """Write a COCO file; `boxes` holds (image id, category id, xywh) with further keys in a dict."""
    annotations = [
        {"id": i, "image_id": image, "category_id": category, "bbox": list(box), **extra}
        for i, (image, category, box, extra) in enumerate(boxes)
    ]
    content = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 640, "height": 480} for i in images],
        "categories": [{"id": i, "name": name} for i, name in categories],
        "annotations": annotations,
    }
    path = folder / "instances.json"
    path.write_text(json.dumps(content))
    return path


def evaluate(path, results, *, iou_type="bbox", backend="hotcoco"):
    """Open the file and evaluate, as everyone does."""
    index = open_index(path)
    ground_truth = ground_truth_of(index, with_masks=iou_type == "segm")
    found = numbered(index, Predictions.from_results(results))
    return evaluate_coco(ground_truth, found, iou_type=iou_type, backend=backend, name=str(path))


def detection(image, category, box, score):
    return {"image_id": image, "category_id": category, "bbox": list(box), "score": score}


def random_case(folder, num_images, num_detections, seed):
    """Objects with crowds, ignored ones, areas below the box's; detections near and off them; gaps in ids."""
    random = np.random.default_rng(seed)
    images = np.cumsum(random.integers(1, 9, num_images))
    categories = np.array([3, 4, 17, 18, 40, 90, 41])
    image_ids = random.choice(images[: num_images * 4 // 5], num_images * 7)  # a fifth has no objects
    labels = random.choice(categories[:-2], len(image_ids))  # two categories have no objects
    sizes = np.exp(random.uniform(np.log(4), np.log(300), (len(image_ids), 2)))
    boxes = np.concatenate([random.uniform(0, 300, sizes.shape), sizes], 1).round(2)
    extras = [
        {"area": float(a), "iscrowd": int(crowd), "ignore": int(ignore)}
        for a, crowd, ignore in zip(
            boxes[:, 2] * boxes[:, 3] * random.uniform(0.4, 1, len(boxes)),
            random.random(len(boxes)) < 0.05,
            random.random(len(boxes)) < 0.05,
            strict=True,
        )
    ]
    path = write_ground_truth(
        folder,
        [
            (int(i), int(c), b, e)
            for i, c, b, e in zip(image_ids, labels, boxes.tolist(), extras, strict=True)
        ],
        [(int(c), f"class {c}") for c in categories],
        images.tolist(),
    )
    near = random.integers(0, len(boxes), num_detections)
    found_boxes = np.abs(
        boxes[near] + random.normal(0, 0.08, (num_detections, 4)) * boxes[near][:, [2, 3, 2, 3]]
    )
    off = random.random(num_detections) < 0.3
    found_images = np.where(off, random.choice(images, num_detections), image_ids[near])
    found_labels = np.where(off, random.choice(categories, num_detections), labels[near])
    scores = random.random(num_detections).round(2)  # many ties
    results = [
        detection(int(i), int(c), b, s)
        for i, c, b, s in zip(found_images, found_labels, found_boxes.tolist(), scores.tolist(), strict=True)
    ]
    return path, results


def assert_same(first, second):
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert (value is None) == (second[key] is None), key
        assert value is None or abs(value - second[key]) <= 1e-9, key


def both_backends(path, results, iou_type="bbox"):
    """The metrics, which are pycocotools' own, read from the file."""
    before = copy.deepcopy(results)
    first, second = (evaluate(path, results, iou_type=iou_type, backend=backend) for backend in BACKENDS)
    assert results == before
    assert_same(first, second)
    if results:
        stats = [-1 if first[key] is None else first[key] / 100 for key in TWELVE]
        assert stats == pytest.approx(reference_stats(path, results, iou_type), abs=1e-11)
    return first


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_backends_agree_on_random_detections(tmp_path, seed):
    metrics = both_backends(*random_case(tmp_path, 60, 8000, seed))
    assert all(metrics[key] is not None and 0 < metrics[key] < 100 for key in TWELVE)
    assert metrics["AP-class 90"] is None
    assert metrics["AP-class 41"] is None


@pytest.mark.slow
def test_backends_agree_on_100k_random_detections(tmp_path):
    both_backends(*random_case(tmp_path, 2000, 100_000, seed=3))


@pytest.mark.parametrize("backend", BACKENDS)
def test_hand_computed(tmp_path, backend):
    """One cat of two found exactly; a dog found at IoU 0.6, below a false one of higher score."""
    path = write_ground_truth(
        tmp_path,
        [
            (1, 1, (10, 10, 20, 20), {}),
            (2, 1, (50, 50, 100, 100), {}),
            (2, 2, (0, 0, 100, 200), {}),
        ],
    )
    results = [
        detection(1, 1, (10, 10, 20, 20), 0.9),
        detection(2, 2, (300, 300, 50, 50), 0.8),
        detection(2, 2, (0, 0, 100, 120), 0.7),
    ]
    metrics = evaluate(path, results, backend=backend)
    cat = 100 * 51 / 101  # recall 0.5 reaches 51 of the 101 points, at precision 1
    dog = 50.0  # the only object is found second: precision 1/2 at every recall
    assert metrics["AP50"] == pytest.approx((cat + dog) / 2)
    assert metrics["AP75"] == pytest.approx(cat / 2)
    assert metrics["AP-cat"] == pytest.approx(cat)
    assert metrics["AP-dog"] == pytest.approx(dog * 3 / 10)  # thresholds 0.50, 0.55, 0.60
    assert metrics["AP"] == pytest.approx((cat + dog * 3 / 10) / 2)
    assert metrics["APs"] == pytest.approx(100)  # the small cat; no small dog
    assert metrics["APm"] is None
    assert metrics["AR1"] == pytest.approx((50 + 0) / 2)
    assert metrics["AR100"] == pytest.approx((50 + 30) / 2)
    assert list(metrics) == [*TWELVE, "AP-cat", "AP-dog"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_predictions_are_zero(tmp_path, backend):
    path = write_ground_truth(tmp_path, [(1, 1, (10, 10, 20, 20), {})])
    metrics = evaluate(path, [], backend=backend)
    assert metrics["AP"] == metrics["AP50"] == metrics["AR100"] == metrics["APs"] == metrics["AP-cat"] == 0.0
    assert metrics["APl"] is None
    assert metrics["AP-dog"] is None


@pytest.mark.parametrize("backend", BACKENDS)
def test_crowds_only(tmp_path, backend):
    path = write_ground_truth(tmp_path, [(1, 1, (10, 10, 20, 20), {"iscrowd": 1})])
    metrics = evaluate(path, [], backend=backend)
    assert set(metrics.values()) == {None}


@pytest.mark.parametrize("backend", BACKENDS)
def test_object_with_id_zero_counts(tmp_path, backend):
    path = write_ground_truth(tmp_path, [(1, 1, (10, 10, 20, 20), {"area": 400, "iscrowd": 0})])
    assert json.loads(path.read_text())["annotations"][0]["id"] == 0
    metrics = evaluate(path, [detection(1, 1, (10, 10, 20, 20), 0.5)], backend=backend)
    assert metrics["AP"] == pytest.approx(100)


@pytest.mark.parametrize("extra", [{}, {"area": None, "iscrowd": None}, {"area": float("nan")}])
def test_missing_area_is_that_of_the_box(tmp_path, extra):
    path = write_ground_truth(tmp_path, [(1, 1, (10, 10, 20, 20), extra), (1, 1, (0, 0, 99, 99), extra)])
    results = [detection(1, 1, (10, 10, 20, 20), 0.5)]
    metrics, other = (evaluate(path, results, backend=backend) for backend in BACKENDS)
    assert_same(metrics, other)
    assert (metrics["APs"], metrics["APm"], metrics["APl"]) == (pytest.approx(100), None, 0)


def test_objects_without_a_size_count_as_in_coco(tmp_path):
    boxes = [(10, 10, 0, 0), (10, 10, 0, 5), (10, 10, -5, -5), (9000, 9000, 5, 5), (30, 30, 20, 20)]
    path = write_ground_truth(tmp_path, [(1, 1, box, {}) for box in boxes])
    metrics = both_backends(path, [detection(1, 1, box, 0.5) for box in boxes[:2] + boxes[-1:]])
    assert metrics["AR100"] == pytest.approx(100 / 5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_more_than_100_detections_of_a_class_in_an_image(tmp_path, backend):
    path = write_ground_truth(tmp_path, [(1, 1, (10, 10, 20, 20), {})])
    wrong = [detection(1, 1, (300, 300, 9, 9), 0.9)] * 100
    right = [detection(1, 1, (10, 10, 20, 20), 0.1)]
    assert evaluate(path, wrong + right, backend=backend)["AR100"] == 0
    assert evaluate(path, wrong[1:] + right, backend=backend)["AR100"] == pytest.approx(100)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_is_printed(tmp_path, backend, capfd):
    path = write_ground_truth(tmp_path, [(1, 1, (10, 10, 20, 20), {})])
    evaluate(path, [], backend=backend)
    assert capfd.readouterr() == ("", "")


def test_classes_may_be_in_any_order_and_share_a_name(tmp_path):
    path = write_ground_truth(
        tmp_path, [(1, 7, (10, 10, 20, 20), {}), (1, 2, (90, 90, 20, 20), {})], [(7, "cell"), (2, "cell")]
    )
    metrics = evaluate(path, [detection(1, 7, (10, 10, 20, 20), 0.5)])
    assert metrics["AP-cell (7)"] == pytest.approx(100)
    assert metrics["AP-cell (2)"] == 0


def test_without_annotations_there_is_no_ap(tmp_path, caplog):
    path = write_ground_truth(tmp_path, [])
    with caplog.at_level(logging.INFO):
        assert evaluate(path, []) is None
    assert f"{path} has no annotations: only predictions are written, there is no AP" in caplog.text


def test_detections_of_another_set_are_refused(tmp_path):
    path = write_ground_truth(tmp_path, [(1, 1, (10, 10, 20, 20), {})])
    with pytest.raises(ValueError, match=r"a set: .* 1 unknown image id \(77\)"):
        evaluate(path, [detection(77, 1, (0, 0, 1, 1), 0.5)])
    with pytest.raises(ValueError, match=r"6 unknown category ids .*\(3, 4, 5, 6, 7 and 1 more\)"):
        evaluate(path, [detection(1, c, (0, 0, 1, 1), 0.5) for c in range(3, 9)])


def test_missing_pycocotools_says_what_to_do(tmp_path, monkeypatch):
    path = write_ground_truth(tmp_path, [(1, 1, (10, 10, 20, 20), {})])
    monkeypatch.setitem(sys.modules, "pycocotools.cocoeval", None)
    with pytest.raises(ConfigError, match="pip install pycocotools, or evaluate with hotcoco"):
        evaluate(path, [], backend="pycocotools")
