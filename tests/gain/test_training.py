"""What is read back from a finished run."""

import json

import pytest

from lgd.gain.training import summarise


@pytest.fixture
def write(tmp_path):
    def write_run(**ap_of_model):
        models = {name: {"bbox": {"AP": ap, "AP50": 2 * ap}} for name, ap in ap_of_model.items()}
        lines = [
            {"total_loss": 1.0, "time": 0.2, "memory": 5.0, "iteration": 1},
            {"total_loss": 1.0, "time": 0.4, "memory": 7.0, "iteration": 2},
            {"total_loss": 1.0, "time": 0.3, "memory": 6.0, "iteration": 3},
            {"eval": {"val": models}, "iteration": 3},
        ]
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (tmp_path / "results.json").write_text(json.dumps({"val": models}))
        return tmp_path

    return write_run


def test_a_run_in_a_few_numbers(write):
    found = summarise(write(student=30.0, teacher=40.0))
    assert found == {
        "AP": 30.0,
        "AP50": 60.0,
        "teacher AP": 40.0,
        "seconds": 0.3,
        "memory": 7.0,
        "curve": [[3, 30.0]],
    }


@pytest.mark.parametrize(("student", "average"), [(30.0, 31.0), (31.0, 30.0)])
def test_of_student_and_average_the_better_counts(write, student, average):
    found = summarise(write(student=student, ema=average, teacher=50.0))
    assert (found["AP"], found["AP50"], found["curve"]) == (31.0, 62.0, [[3, 31.0]])
