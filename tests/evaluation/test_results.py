"""Result files and the tables of the terminal."""

import json
from pathlib import Path

import pytest

from lgd.evaluation.predictions import Predictions
from lgd.evaluation.results import headline, results_table, write_predictions, write_results_json

METRICS = {"AP": 41.234, "AP50": 60.0, "AP75": float("nan"), "APs": None, "APm": 5.5, "APl": 100.0}
FOUND = {"image_id": 1, "category_id": 2, "bbox": [0.1, 1 / 3, 2.0, 3.0], "score": 0.7}


def test_results_json_has_null_for_what_cannot_be_measured(tmp_path):
    path = tmp_path / "new" / "results.json"
    write_results_json(path, {"val": {"student": {"bbox": METRICS}, "teacher": {"bbox": None}}})
    assert json.loads(path.read_text()) == {
        "val": {"student": {"bbox": {**METRICS, "AP75": None}}, "teacher": {"bbox": None}}
    }


def test_predictions_come_back_exactly(tmp_path):
    predictions = [FOUND, {**FOUND, "score": 0.1}]
    path = tmp_path / "inference" / "val" / "predictions.json"
    write_predictions(path, Predictions.from_results(predictions))
    assert path.read_text() == json.dumps(predictions)


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "predictions.json"
    write_predictions(path, Predictions.from_results([]))

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        write_predictions(path, Predictions.from_results([FOUND]))
    assert [file.name for file in tmp_path.iterdir()] == ["predictions.json"]
    assert path.read_text() == "[]"


def test_headline():
    assert headline({**METRICS, "AP75": 30.0, "AR1": 1.0}) == "AP 41.23  AP50 60.00  AP75 30.00"
    assert headline({**METRICS, "AP75": None}) == "AP 41.23  AP50 60.00"
    assert headline({"AP-person": 2.0, "mMR": 45.5, "JI": 70.0}) == "mMR 45.50  JI 70.00"


def test_table():
    student = {**METRICS, "AP-cat": 7.0, "AP-größer": None}
    teacher = {**dict.fromkeys(METRICS, 50.0), "AP-cat": 80.25, "AP-größer": 1.0}
    table = results_table({"val": {"student": {"bbox": student}, "teacher": {"bbox": teacher}}})
    assert table == "\n".join(
        [
            "data set  model    metrics     AP   AP50   AP75    APs    APm     APl",
            "---------------------------------------------------------------------",
            "val       student  bbox     41.23  60.00      -      -   5.50  100.00",
            "val       teacher  bbox     50.00  50.00  50.00  50.00  50.00   50.00",
            "",
            "AP per class, val  student bbox  teacher bbox",
            "---------------------------------------------",
            "cat                        7.00         80.25",
            "größer                        -          1.00",
        ]
    )


def test_table_shows_masks_beside_boxes_and_other_metrics_apart():
    boxes = dict.fromkeys(METRICS, 50.0)
    masks = {**dict.fromkeys(METRICS, 40.0), "AR100": 45.0, "AP-cat": 7.0}
    results = {
        "val": {"student": {"bbox": boxes, "segm": masks}, "teacher": {"bbox": boxes, "segm": None}},
        "crowd": {"student": {"bbox": boxes, "crowdhuman": {"AP50": 80.0, "mMR": 45.5, "JI": None}}},
    }
    assert results_table(results) == "\n".join(
        [
            "data set  model    metrics     AP   AP50   AP75    APs    APm    APl",
            "--------------------------------------------------------------------",
            "val       student  bbox     50.00  50.00  50.00  50.00  50.00  50.00",
            "val       student  segm     40.00  40.00  40.00  40.00  40.00  40.00",
            "val       teacher  bbox     50.00  50.00  50.00  50.00  50.00  50.00",
            "val       teacher  segm         -      -      -      -      -      -",
            "crowd     student  bbox     50.00  50.00  50.00  50.00  50.00  50.00",
            "",
            "data set  model    metrics      AP50    mMR  JI",
            "-----------------------------------------------",
            "crowd     student  crowdhuman  80.00  45.50   -",
            "",
            "AP per class, val  student segm",
            "-------------------------------",
            "cat                        7.00",
        ]
    )


def test_many_classes_make_no_class_table_and_no_metrics_make_dashes():
    many = {"AP": 1.0, **{f"AP-{k}": 1.0 for k in range(31)}}
    assert "per class" not in results_table({"val": {"student": {"bbox": many}}})
    assert "per class" in results_table({"val": {"student": {"bbox": {"AP": 1.0, "AP-0": 1.0}}}})
    assert results_table({"test": {"student": {"bbox": None}}}).splitlines()[-1].split() == [
        "test",
        "student",
        "bbox",
        *"------",
    ]
