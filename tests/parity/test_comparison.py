import copy
import json
import re

import pytest

from tests.parity.comparison import differences, trace_differences
from tests.parity.test_parity import TRACE, A


@pytest.fixture(scope="module")
def recorded():
    return json.loads(A.read_text())["float64"]


@pytest.fixture
def result(recorded):
    """A result that repeats the record."""
    parts = copy.deepcopy({part: recorded[part] for part in ("train_flag1", "train_flag0", "eval_teacher")})
    for part in ("train_flag1", "train_flag0"):
        parts[part]["stats"] = {side: parts["train_flag1"]["stats"][side] for side in ("student", "teacher")}
    return {"dtype": "float64", **parts}


def test_the_record_itself_has_no_differences(recorded, result):
    assert differences(result, recorded) == []


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            lambda r: r["train_flag1"]["losses"].update(loss_distill=1.9763175),
            "train_flag1: loss_distill: 1.97",
        ),
        (lambda r: r["train_flag1"]["losses"].update(loss_extra=1.0), r"other names: \['loss_extra'\]"),
        (
            lambda r: r["train_flag0"].update(loss_normalizer_after=117.2),
            "loss_normalizer_after: 117.2 for 117.1",
        ),
        (
            lambda r: r["train_flag1"]["grad_norms"].update({"student.head.cls_subnet.0.bias": None}),
            "gradient of student.head.cls_subnet.0.bias: 0.0 for 0.84",
        ),
        (
            lambda r: r["train_flag1"]["grad_norms"].update({"student.raw_backbone.stem.conv1.weight": 1e-9}),
            "stem.conv1.weight has a gradient",
        ),
        (lambda r: r["train_flag1"]["stats"]["teacher"]["p5"].update(l2=1.0), "teacher p5: 1.0 for"),
        (
            lambda r: r["train_flag1"]["stats"]["student"]["p6"]["strided8"].__setitem__(3, 0.0),
            "student p6: other values",
        ),
        (lambda r: r["eval_teacher"].pop(), "eval_teacher: 1 images for 2"),
        (lambda r: r["eval_teacher"][0]["classes"].__setitem__(7, 99), "199 of 200 detections matched"),
        (lambda r: r["eval_teacher"][1]["boxes"][0].__setitem__(0, 500.0), "199 of 200 detections matched"),
        (lambda r: r["eval_teacher"][1]["scores"].__setitem__(0, 0.99), "199 of 200 detections matched"),
    ],
)
def test_each_difference_is_found(recorded, result, change, line):
    change(result)
    found = differences(result, recorded)
    assert len(found) == 1
    assert re.search(line, found[0])


def test_differences_of_a_trace_are_found():
    recorded = json.loads(TRACE.read_text())
    result = {"dtype": "float64", **copy.deepcopy(recorded)}
    assert trace_differences(result, recorded) == []
    result["steps"][2]["stu_lr"] = 0.1
    result["steps"][3]["losses"]["loss_cls"] *= 1 + 1e-6
    result["l2_of_total_parameter_change"]["adapter.distill.adapter.0.bias"] *= 2
    found = trace_differences(result, recorded)
    assert [line.split(":")[0] for line in found] == [
        "step 2",
        "step 3",
        "change of adapter.distill.adapter.0.bias",
    ]
