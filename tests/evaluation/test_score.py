from pathlib import Path

import pytest

from lgd.data.catalog import open_dataset
from lgd.evaluation.predictions import Predictions
from lgd.evaluation.results import headline, results_table
from lgd.evaluation.score import score
from tests.data.boxes_sets import person, voc_object, write_crowdhuman, write_voc


def result(image: int, box, value: float, category: int = 1) -> dict[str, object]:
    return {"image_id": image, "category_id": category, "bbox": list(box), "score": value}


def score_student(index, results, **more):
    return score(index, {"student": Predictions.from_results(results)}, **more)["student"]


@pytest.mark.parametrize("backend", ["hotcoco", "pycocotools"])
def test_crowdhuman(tmp_path, backend):
    people = [person((-20, 5, 40, 30)), person((30, 5, 20, 30), tag="mask")]
    index = open_dataset(write_crowdhuman(tmp_path, {"a": people, "b": []}), Path())
    results = [result(1, (0, 5, 20, 30), 0.9), result(1, (32, 5, 9, 9), 0.8)]
    metrics = score_student(index, results, with_masks=False, backend=backend)
    assert metrics.keys() == {"bbox"}
    box = metrics["bbox"]
    assert (box["AP"], box["AP75"], box["mMR"], box["JI"]) == (pytest.approx(100), pytest.approx(100), 0, 100)
    assert headline(box) == "AP 100.00  AP50 100.00  mMR 0.00"
    table = results_table({"crowd": {"student": metrics}})
    assert table.splitlines()[0].split() == [
        *("data", "set", "model", "metrics", "AP", "AP50", "mMR", "JI", "AP75", "APs", "APm", "APl")
    ]


@pytest.mark.parametrize("backend", ["hotcoco", "pycocotools"])
def test_voc(tmp_path, backend):
    objects = [voc_object("aeroplane", (1, 1, 20, 20)), voc_object("aeroplane", (31, 1, 50, 20), 1)]
    index = open_dataset(write_voc(tmp_path, {"a": objects}), Path())
    results = [result(1, (30, 0, 20, 20), 0.9), result(1, (0, 0, 20, 20), 0.8)]
    metrics = score_student(index, results, with_masks=True, backend=backend)
    box = metrics["bbox"]
    assert metrics["segm"] is None
    assert [box[name] for name in ("AP", "AP50", "AP50-07", "AP-aeroplane", "AP50-aeroplane")] == [
        pytest.approx(100)
    ] * 5
    assert box["AP50-bird"] is None
    assert headline(box) == "AP 100.00  AP50 100.00  AP50-07 100.00"


def test_a_set_without_annotations(tmp_path):
    index = open_dataset(write_crowdhuman(tmp_path, {"a": None}), Path())
    assert score_student(index, [], with_masks=False, backend="hotcoco") == {"bbox": None}
