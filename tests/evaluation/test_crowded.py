"""More objects than COCO's 100 a class and image: both caps are measured, what neither reaches is said."""

import json

import numpy as np
import pytest
from hotcoco import mask

from lgd.data.catalog import open_dataset
from lgd.evaluation.coco import evaluate_coco, name_metrics
from lgd.evaluation.ground_truth import ground_truth_of, numbered
from lgd.evaluation.predictions import Predictions
from lgd.evaluation.reach import say_out_of_reach
from lgd.evaluation.results import headline, results_table
from lgd.evaluation.score import is_better, name_scores, score
from tests.data.boxes_sets import person, voc_object, write_crowdhuman, write_voc
from tests.evaluation.reference import open_index, reference_stats, reference_stats_at

BACKENDS = ("hotcoco", "pycocotools")
SIDE = 800


def grid(count):
    """Boxes of 20 x 20 that do not touch."""
    return [[40.0 * (k % 20), 40.0 * (k // 20), 20.0, 20.0] for k in range(count)]


def as_mask(box):
    x, y, width, height = (round(number) for number in box)
    bitmap = np.zeros((SIDE, SIDE), dtype=np.uint8, order="F")
    bitmap[y : y + height, x : x + width] = 1
    encoded = mask.encode(bitmap)
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode()}


def write_crowd(folder, counts, crowds=0):
    """An image for each of `counts`, with so many cells and a dog; the last `crowds` cells are crowds."""
    images = [
        {"id": i, "file_name": f"{i}.png", "width": SIDE, "height": SIDE} for i in range(1, len(counts) + 1)
    ]
    annotations = []
    for image, count in enumerate(counts, start=1):
        for k, box in enumerate([*grid(count), [780.0, 780.0, 20.0, 20.0]]):
            x, y, width, height = box
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": 2 if k == count else 1,
                    "bbox": box,
                    "area": width * height,
                    "iscrowd": int(count - crowds <= k < count),
                    "segmentation": [[x, y, x + width, y, x + width, y + height, x, y + height]],
                }
            )
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "cell"}, {"id": 2, "name": "dog"}],
    }
    path = folder / "instances.json"
    path.write_text(json.dumps(content))
    return path


def find(path, seed=0):
    """Most objects, somewhat moved, and some that are none; in no order of scores."""
    random = np.random.default_rng(seed)
    results = []
    for each in json.loads(path.read_text())["annotations"]:
        if each["iscrowd"] or random.random() < 0.1:
            continue
        box = (np.array(each["bbox"]) + random.integers(-3, 4, 4)).clip(0, SIDE - 30).tolist()
        box[2:] = np.clip(box[2:], 10, 30).tolist()
        results.append(
            {
                "image_id": each["image_id"],
                "category_id": each["category_id"],
                "bbox": box,
                "score": float(random.random()),
                "segmentation": as_mask(box),
            }
        )
    return results


def evaluate(path, results, iou_type, backend, cap):
    index = open_index(path)
    truth = ground_truth_of(index, with_masks=iou_type == "segm")
    kept = [{key: value for key, value in each.items() if key != "bbox"} for each in results]
    found = numbered(index, Predictions.from_results(results if iou_type == "bbox" else kept))
    return evaluate_coco(truth, found, iou_type=iou_type, backend=backend, cap=cap, name="a set")


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_both_caps_are_pycocotools_own(tmp_path, backend, iou_type):
    path = write_crowd(tmp_path, [160, 30])
    results = find(path)
    metrics = evaluate(path, results, iou_type, backend, 300)
    assert metrics["AP"] == pytest.approx(100 * reference_stats(path, results, iou_type)[0], abs=1e-9)
    expected = reference_stats_at(path, results, iou_type, 300)
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, abs=1e-9)
    assert metrics["AP@300"] > metrics["AP"] + 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_headline_is_that_of_100(tmp_path, backend):
    path = write_crowd(tmp_path, [110])
    results = find(path)
    alone, beside = (evaluate(path, results, "bbox", backend, cap) for cap in (100, 1000))
    assert {name: beside[name] for name in alone} == alone
    assert list(beside) == name_metrics(["cell", "dog"], 1000)
    assert beside.keys() - alone.keys() == {"AP@1000", "AP50@1000", "AP75@1000", "AR@1000"}


@pytest.mark.parametrize("backend", BACKENDS)
def test_all_found_is_all_there_is(tmp_path, backend):
    path = write_crowd(tmp_path, [300])
    results = [
        {"image_id": each["image_id"], "category_id": each["category_id"], "bbox": each["bbox"], "score": 0.5}
        for each in json.loads(path.read_text())["annotations"]
    ]
    metrics = evaluate(path, results, "bbox", backend, 1000)
    assert metrics["AP@1000"] == pytest.approx(100)
    assert metrics["AR@1000"] == pytest.approx(100)
    assert metrics["AP"] == pytest.approx((100 * 34 / 101 + 100) / 2)


def test_tables_show_both(tmp_path):
    path = write_crowd(tmp_path, [110])
    metrics = evaluate(path, find(path), "bbox", "hotcoco", 500)
    assert "AP@500" in headline(metrics)
    head = results_table({"cells": {"student": {"bbox": metrics}}}).partition("\n")[0].split()
    assert head[-9:] == ["AP", "AP50", "AP75", "APs", "APm", "APl", "AP@500", "AP50@500", "AR@500"]


def test_what_is_out_of_reach_is_counted(tmp_path):
    index = open_index(write_crowd(tmp_path, [250, 30, 120], crowds=10))
    of_image, of_class = say_out_of_reach(index, 200)
    assert "41 of 373 objects are out of reach: images have up to 241" in of_image
    assert "TEST.DETECTIONS_PER_IMAGE 200 are kept of each; set it to 241 or more" in of_image
    assert "150 of 373 objects are beyond the 100 of a class and image" in of_class
    assert "AP@200 stands beside it" in of_class
    (of_class,) = say_out_of_reach(index, 241)
    assert "TEST.BEST_METRIC" in of_class
    assert "TEST.DETECTIONS_PER_IMAGE N above 100" in say_out_of_reach(index, 100)[1]


def test_nothing_is_said_where_all_is_in_reach(tmp_path):
    assert say_out_of_reach(open_index(write_crowd(tmp_path, [99])), 100) == []


@pytest.mark.parametrize("kind", ["coco", "voc", "crowdhuman"])
def test_the_names_are_those_of_what_is_measured(tmp_path, kind):
    if kind == "coco":
        index = open_index(write_crowd(tmp_path, [3]))
    elif kind == "voc":
        index = open_dataset(write_voc(tmp_path, {"a": [voc_object("cat", (1, 1, 20, 20))]}), tmp_path)
    else:
        index = open_dataset(write_crowdhuman(tmp_path, {"a": [person((1, 1, 20, 20))]}), tmp_path)
    nothing = {"student": Predictions.from_results([])}
    scores = score(index, nothing, with_masks=kind == "coco", backend="hotcoco", cap=200)["student"]
    assert {
        key: set(names) for key, names in name_scores(index, with_masks=kind == "coco", cap=200).items()
    } == {key: set(metrics) for key, metrics in scores.items()}


def test_less_missed_is_better():
    assert is_better("mMR", 40.0, 50.0)
    assert not is_better("mMR", 50.0, 40.0)
    assert is_better("AP@1000", 50.0, 40.0)
