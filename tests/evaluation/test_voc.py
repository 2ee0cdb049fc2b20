from pathlib import Path

import numpy as np
import pytest

from lgd.data.catalog import open_dataset
from lgd.data.voc import CLASS_NAMES
from lgd.evaluation.ground_truth import ground_truth_of
from lgd.evaluation.predictions import Predictions
from lgd.evaluation.voc import evaluate_voc
from tests.data.boxes_sets import voc_object, write_voc
from tests.evaluation.slow_voc import slow_ap

CAT, DOG = 8, 12
"""Their category ids, counted from 1."""


def open_set(root: Path, images):
    return open_dataset(write_voc(root, images), Path())


def evaluate(index, results):
    return evaluate_voc(index, Predictions.from_results(results))


def result(image: int, box, score: float, category: int = CAT) -> dict[str, object]:
    """A detection of a box in VOC's coordinates, which count from 1 with both ends."""
    x1, y1, x2, y2 = box
    return {
        "image_id": image,
        "category_id": category,
        "bbox": [x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1],
        "score": score,
    }


A, B, C, FAR = (1, 1, 10, 20), (21, 1, 30, 20), (41, 1, 50, 20), (41, 30, 50, 40)


def test_by_hand(tmp_path):
    # Three cats and a difficult one. Best first: right, wrong (again), not counted, wrong, right.
    images = {
        "a": [voc_object("cat", A), voc_object("cat", B), voc_object("dog", B)],
        "b": [voc_object("cat", A), voc_object("cat", C, difficult=1)],
    }
    index = open_set(tmp_path, images)
    results = [
        result(1, A, 0.9),
        result(1, A, 0.8),
        result(2, C, 0.75),
        result(2, C, 0.74),
        result(1, FAR, 0.7),
        result(2, A, 0.6),
        result(1, B, 0.5, DOG),
    ]
    metrics = evaluate(index, results)
    # Cats: recall 1/3, 1/3, 1/3, 2/3 at precision 1, 1/2, 1/3, 1/2.
    assert metrics["AP50-cat"] == pytest.approx(100 * (1 + 1 / 2) / 3, abs=1e-9)
    assert metrics["AP50-dog"] == 100
    assert metrics["AP50-bird"] is None
    assert metrics["AP50"] == pytest.approx((50 + 100) / 2, abs=1e-9)
    # Recall 0 to 0.3 at precision 1, 0.4 to 0.6 at 1/2, 0 beyond.
    assert metrics["AP50-07"] == pytest.approx((100 * (4 + 3 / 2) / 11 + 100) / 2, abs=1e-9)


def test_the_object_overlapped_most_counts_even_if_it_is_found_already(tmp_path):
    index = open_set(tmp_path, {"a": [voc_object("cat", (1, 1, 20, 20)), voc_object("cat", (4, 1, 23, 20))]})
    results = [result(1, (1, 1, 20, 20), 0.9), result(1, (2, 1, 21, 20), 0.8)]
    assert evaluate(index, results)["AP50"] == 50


def test_objects_of_other_classes_do_not_count(tmp_path):
    index = open_set(tmp_path, {"a": [voc_object("dog", A), voc_object("cat", (1, 1, 11, 20))]})
    assert evaluate(index, [result(1, A, 0.9)])["AP50-cat"] == 100


def test_an_overlap_of_one_half_is_too_little(tmp_path):
    index = open_set(tmp_path, {"a": [voc_object("cat", (1, 1, 20, 20))]})
    assert evaluate(index, [result(1, (1, 1, 20, 10), 0.9)])["AP50"] == 0
    assert evaluate(index, [result(1, (1, 1, 20, 11), 0.9)])["AP50"] == 100


def test_a_recall_of_exactly_a_tenth_is_reached(tmp_path):
    boxes = [(6 * k + 1, 1, 6 * k + 5, 5) for k in range(10)]
    index = open_set(tmp_path, {"a": [voc_object("cat", box) for box in boxes]})
    results = [result(1, box, 0.9) for box in boxes[:3]]
    assert evaluate(index, results)["AP50-07"] == pytest.approx(100 * 4 / 11, abs=1e-9)


def test_nothing_found_and_nothing_to_find(tmp_path):
    index = open_set(tmp_path / "a", {"a": [voc_object("cat", A)]})
    assert (evaluate(index, [])["AP50"], evaluate(index, [])["AP50-07"]) == (0, 0)
    index = open_set(tmp_path / "b", {"a": [voc_object("cat", A, difficult=1)]})
    assert set(evaluate(index, [result(1, A, 0.9)]).values()) == {None}


@pytest.mark.parametrize("seed", range(5))
def test_equals_loops_on_random_data(tmp_path, seed):
    generator = np.random.default_rng(seed)
    images, results = {}, []
    for image in range(1, 11):
        objects = []
        for _ in range(generator.integers(0, 7)):
            x1, y1 = generator.integers(1, 40, 2).tolist()
            width, height = generator.integers(8, 24, 2).tolist()
            kind = int(generator.integers(3))
            box = (x1, y1, x1 + width, y1 + height)
            objects.append(voc_object(CLASS_NAMES[kind], box, int(generator.random() < 0.25)))
            for _ in range(generator.integers(0, 4)):
                moved = np.array(box) + generator.integers(-3, 4, 4)
                found = kind if generator.random() < 0.8 else int(generator.integers(4))
                results.append(result(image, moved.tolist(), float(generator.random()), found + 1))
        images[f"{image}"] = objects
    index = open_set(tmp_path, images)
    metrics = evaluate(index, results)
    expected = {label: slow_ap(index, results, label) for label in range(20)}
    present = [each for each in expected.values() if each is not None]
    assert len(present) == 3
    assert metrics["AP50"] == pytest.approx(100 * np.mean([area for area, _ in present]), abs=1e-9)
    assert metrics["AP50-07"] == pytest.approx(100 * np.mean([points for _, points in present]), abs=1e-9)
    for label, each in expected.items():
        area = metrics[f"AP50-{CLASS_NAMES[label]}"]
        assert area is None if each is None else area == pytest.approx(100 * each[0], abs=1e-9)


def test_difficult_objects_are_crowds_in_coco_format(tmp_path):
    index = open_set(tmp_path, {"a": [voc_object("cat", A, 1), voc_object("dog", B)]})
    ground_truth = ground_truth_of(index, with_masks=False)
    assert ground_truth.crowd.tolist() == [True, False]
    assert ground_truth.classes.tolist() == [CAT, DOG]
    assert ground_truth.boxes[0].tolist() == [0, 0, 10, 20]
