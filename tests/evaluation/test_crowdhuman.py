import math
from pathlib import Path

import numpy as np
import pytest

from lgd.data.catalog import open_dataset
from lgd.evaluation.crowdhuman import evaluate_crowdhuman
from lgd.evaluation.ground_truth import ground_truth_of
from lgd.evaluation.predictions import Predictions
from tests.data.boxes_sets import person, write_crowdhuman
from tests.evaluation.slow_crowdhuman import slow_average_precision, slow_jaccard_index, slow_miss_rate


def open_set(root: Path, images):
    return open_dataset(write_crowdhuman(root, images, size=(200, 100)), Path())


def evaluate(index, results):
    return evaluate_crowdhuman(index, Predictions.from_results(results))


def result(image: int, box, score: float) -> dict[str, object]:
    return {"image_id": image, "category_id": 1, "bbox": list(box), "score": score}


A, B, C = (0, 0, 20, 40), (50, 0, 20, 40), (100, 0, 20, 40)
FAR = (150, 60, 20, 40)


def test_by_hand(tmp_path):
    # Four objects in two images. Best first: right, wrong, right, right, wrong, wrong.
    index = open_set(tmp_path, {"a": [person(A), person(B)], "b": [person(A), person(C)]})
    results = [
        result(1, A, 0.9),
        result(1, FAR, 0.8),
        result(2, A, 0.7),
        result(2, C, 0.6),
        result(2, A, 0.5),
        result(1, C, 0.4),
    ]
    metrics = evaluate(index, results)
    # False positives per image: 0, 1/2, 1/2, 1/2, 1, 3/2; missed: 3/4, 3/4, 1/2, 1/4, 1/4, 1/4. The rates up
    # to 0.3162 are first reached at 1/2 (missed 3/4), 0.5623 and 1 at 1 (missed 1/4).
    expected = math.exp((7 * math.log(3 / 4) + 2 * math.log(1 / 4)) / 9)
    assert metrics["mMR"] == pytest.approx(100 * expected, abs=1e-9)
    # Recall 1/4, 1/4, 1/2, 3/4, ... at precision 1, 1/2, 2/3, 3/4, ...
    area = (1 + (1 / 2 + 2 / 3) / 2 + (2 / 3 + 3 / 4) / 2) / 4
    assert metrics["AP50"] == pytest.approx(100 * area, abs=1e-9)
    # Above 0.5: one of three in the first image, both in the second.
    assert metrics["JI"] == pytest.approx(100 * (1 / 3 + 1) / 2, abs=1e-9)


def test_nothing_missed_and_nothing_found(tmp_path):
    index = open_set(tmp_path, {"a": [person(A)], "b": []})
    assert evaluate(index, []) == {"AP50": 0.0, "mMR": 100.0, "JI": 0.0}
    metrics = evaluate(index, [result(1, A, 0.9)])
    assert metrics == {"AP50": 100.0, "mMR": 0.0, "JI": 100.0}


def test_without_objects_there_is_nothing_to_measure(tmp_path):
    index = open_set(tmp_path, {"a": [person(A, tag="mask")]})
    assert evaluate(index, [result(1, A, 0.9)]) == {"AP50": None, "mMR": None, "JI": None}


def test_what_lies_in_a_region_to_ignore_is_not_wrong(tmp_path):
    region = (100, 0, 60, 100)
    index = open_set(tmp_path, {"a": [person(A), person(region, tag="mask")]})
    inside = [result(1, (110, 10, 20, 20), 0.9), result(1, (130, 40, 20, 20), 0.8)]
    half_outside = [result(1, (90, 10, 20, 20), 0.9)]
    right = [result(1, A, 0.7)]
    assert evaluate(index, inside + right)["mMR"] == 0
    assert evaluate(index, inside + right)["JI"] == 100
    assert evaluate(index, half_outside + right)["mMR"] == 100
    assert evaluate(index, half_outside + right)["JI"] == 50


def test_an_object_comes_before_a_region_to_ignore(tmp_path):
    index = open_set(tmp_path, {"a": [person((0, 0, 100, 100), ignore=1), person(A)]})
    assert evaluate(index, [result(1, A, 0.7)])["mMR"] == 0


def test_objects_in_a_region_to_ignore_need_not_be_found_for_ji(tmp_path):
    index = open_set(tmp_path, {"a": [person((0, 0, 40, 40), tag="mask"), person(A), person(B)]})
    assert evaluate(index, [result(1, B, 0.7)])["JI"] == 100


def test_an_overlap_of_one_half_is_too_little_for_mmr_and_enough_for_ji(tmp_path):
    index = open_set(tmp_path, {"a": [person((0, 0, 20, 40))]})
    metrics = evaluate(index, [result(1, (0, 0, 20, 20), 0.7)])
    assert (metrics["mMR"], metrics["JI"]) == (100, 100)


def test_objects_are_clipped_to_their_image(tmp_path):
    index = open_set(tmp_path, {"a": [person((-100, 0, 120, 300))]})
    assert evaluate(index, [result(1, (0, 0, 20, 100), 0.9)])["mMR"] == 0


def test_ji_matches_as_many_as_possible(tmp_path):
    # The better detection overlaps both objects, the other only the first: greedily one pair, at best two.
    index = open_set(tmp_path, {"a": [person((0, 0, 30, 40)), person((8, 0, 30, 40))]})
    results = [result(1, (2, 0, 30, 40), 0.9), result(1, (-8, 0, 30, 40), 0.8)]
    assert evaluate(index, results)["JI"] == 100


def random_results(generator: np.random.Generator, objects: dict[int, list], per_image: int):
    """Detections, some near objects, with scores that are all different."""
    results = []
    for image, boxes in objects.items():
        for _ in range(per_image):
            base = boxes[generator.integers(len(boxes))] if boxes and generator.random() < 0.8 else None
            box = generator.uniform((0, 0, 5, 5), (150, 60, 50, 40))
            if base is not None:
                box = np.array(base) + generator.normal(0, 2, 4)
                box[2:] = box[2:].clip(min=3)
            results.append(
                result(image, box.tolist(), float(generator.random()) * (0.6 if base is None else 1))
            )
    return results


@pytest.mark.parametrize("seed", range(6))
def test_equals_loops_on_random_data(tmp_path, seed):
    generator = np.random.default_rng(seed)
    images, objects = {}, {}
    for image in range(1, 9):
        boxes = generator.uniform(
            (-20, -20, 10, 10), (160, 70, 60, 60), (generator.integers(0, 12), 4)
        ).tolist()
        # Every second set has regions to ignore, for which the loops know no JI.
        ignore = generator.random(len(boxes)) < (0.2 if seed % 2 else 0)
        images[f"{image}"] = [
            person(box, "mask" if flag else "person") for box, flag in zip(boxes, ignore, strict=True)
        ]
        objects[image] = boxes
    index = open_set(tmp_path, images)
    results = random_results(generator, objects, 14)
    metrics = evaluate(index, results)
    assert 5 < metrics["mMR"] < 99
    assert metrics["mMR"] == pytest.approx(100 * slow_miss_rate(index, results), abs=1e-9)
    assert metrics["AP50"] == pytest.approx(100 * slow_average_precision(index, results), abs=1e-9)
    if seed % 2 == 0:
        assert metrics["JI"] == pytest.approx(100 * slow_jaccard_index(index, results), abs=1e-9)


def test_unknown_images_and_categories(tmp_path):
    index = open_set(tmp_path, {"a": [person(A)]})
    with pytest.raises(ValueError, match=r"crowdhuman:.* 1 unknown image id \(2\)"):
        evaluate(index, [result(2, A, 0.9)])
    with pytest.raises(ValueError, match=r"1 unknown category id \(3\)"):
        evaluate(index, [result(1, A, 0.9) | {"category_id": 3}])


def test_ground_truth_in_coco_format(tmp_path):
    index = open_set(tmp_path, {"a": [person((-10, 0, 30, 40)), person(B, tag="mask")], "b": []})
    ground_truth = ground_truth_of(index, with_masks=False)
    assert (ground_truth.heights.tolist(), ground_truth.widths.tolist()) == ([100, 100], [200, 200])
    assert ground_truth.class_names == ("person",)
    assert (ground_truth.images.tolist(), ground_truth.classes.tolist()) == ([1, 1], [1, 1])
    assert ground_truth.boxes.tolist() == [[0, 0, 20, 40], [50, 0, 20, 40]]
    assert ground_truth.areas.tolist() == [800, 800]
    assert ground_truth.crowd.tolist() == [False, True]
    assert ground_truth_of(open_set(tmp_path / "test", {"a": None}), with_masks=False) is None
