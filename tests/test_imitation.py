"""Methods with a pretrained teacher on the command line: an earlier student as teacher, resume, errors."""

import json
import shutil

import pytest
import torch
from torch.testing import assert_close

from lgd import train
from tests.training import REPOSITORY, read_metrics, small_settings

DEMO = str(REPOSITORY / "configs/demo.yaml")


def lgd_train(settings, *flags):
    return train.main(["--config-file", DEMO, *flags, *settings])


@pytest.fixture(scope="module")
def teacher(small_data, tmp_path_factory):
    """A plain detector, trained for some steps."""
    output = tmp_path_factory.mktemp("teacher")
    settings = small_settings(small_data, output, MODEL__DISTILLATOR__ENABLED=False, SOLVER__MAX_ITER=3)
    assert lgd_train(settings) == 0
    return output / "model_final.pth"


METHODS = ["FGFI", "PKD", "CrossKD", "LGD+PKD"]


def imitation_settings(small_data, output, teacher, method="FGFI", **changes):
    settings = {
        "MODEL__DISTILLATOR__METHOD": method,
        "MODEL__DISTILLATOR__TEACHER__WEIGHTS": teacher,
        "MODEL__DISTILLATOR__PRE_NONDISTILL_ITERS": 0,
        "SOLVER__MAX_ITER": 6,
        **changes,
    }
    return small_settings(small_data, output, **settings)


@pytest.mark.parametrize("method", METHODS)
def test_a_student_imitates_a_trained_detector(small_data, tmp_path, teacher, method):
    assert lgd_train(imitation_settings(small_data, tmp_path / "a", teacher, method)) == 0
    steps = [line for line in read_metrics(tmp_path / "a") if "total_loss" in line]
    named = {"CrossKD": {"loss_distill", "loss_distill_box"}, "LGD+PKD": {"loss_distill", "loss_pkd"}}
    for line in steps:
        assert all(line[name] > 0 for name in named.get(method, {"loss_distill"}))
    state = torch.load(tmp_path / "a" / "model_final.pth", weights_only=True)["model"]
    trained = torch.load(teacher, weights_only=True)["model"]
    place = "pretrained." if method == "LGD+PKD" else "teacher."
    of_teacher = {name: x for name, x in state.items() if name.startswith(place)}
    assert of_teacher.keys() == {name.replace("student.", place, 1) for name in trained}
    for name, value in trained.items():
        assert_close(of_teacher[name.replace("student.", place, 1)], value, rtol=0, atol=0)
    results = json.loads((tmp_path / "a" / "results.json").read_text())
    assert all(
        set(models) == ({"student", "teacher"} if "LGD" in method else {"student"})
        for models in results.values()
    )


@pytest.mark.parametrize("method", METHODS)
def test_resume_does_not_need_the_teachers_file_again(small_data, tmp_path, teacher, method):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    copy = tmp_path / "teacher.pth"
    copy.write_bytes(teacher.read_bytes())
    assert lgd_train(imitation_settings(small_data, whole, copy, method)) == 0
    shutil.copytree(whole, halves)
    (halves / "checkpoints" / "step_0000006.pth").unlink()
    (halves / "model_final.pth").unlink()
    copy.unlink()
    assert lgd_train(imitation_settings(small_data, halves, copy, method), "--resume") == 0
    states = [torch.load(x / "model_final.pth", weights_only=True)["model"] for x in (whole, halves)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("method", METHODS)
def test_a_teacher_without_weights_is_refused(small_data, tmp_path, capsys, method):
    assert lgd_train(imitation_settings(small_data, tmp_path, "", method)) == 2
    assert f"{method} needs MODEL.DISTILLATOR.TEACHER.WEIGHTS, a trained detector" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("method", "changes", "says"),
    [
        (
            "PKD",
            {"MODEL__FPN__OUT_CHANNELS": 24},
            "the teacher's features have 16 channels, the student's 24",
        ),
        ("LGD+PKD", {"MODEL__FPN__OUT_CHANNELS": 24}, "features have 16 channels, the student's 24"),
        ("CrossKD", {"MODEL__FPN__OUT_CHANNELS": 24}, "channels of the teacher: 16, of the student: 24"),
        ("CrossKD", {"MODEL__META_ARCHITECTURE": "GeneralizedRCNN"}, "the student (RCNN) has no dense head"),
        (
            "CrossKD",
            {"MODEL__META_ARCHITECTURE": "ATSS"},
            "anchors of a cell of the teacher: 9, of the student: 1",
        ),
        ("CrossKD", {"MODEL__DISTILLATOR__CROSSKD__LAYER": 3}, "layer 3 is not within both heads"),
        ("CrossKD", {"MODEL__DISTILLATOR__CROSSKD__LAYER": -1}, "CROSSKD.LAYER"),
        ("PKD", {"MODEL__DISTILLATOR__PKD__LAMBDA": -1}, "PKD.LAMBDA"),
        ("CrossDK", {}, "METHOD expects"),
    ],
)
def test_what_does_not_go_together_is_one_line(small_data, tmp_path, teacher, capsys, method, changes, says):
    recipe = teacher.parent / "config.yaml"
    two_stage = "GeneralizedRCNN" in changes.values()
    settings = {"MODEL__DISTILLATOR__TEACHER__CONFIG_FILE": recipe, **changes}
    if two_stage:
        settings["MODEL__RPN__IN_FEATURES"] = "('p3', 'p4', 'p5', 'p6', 'p7')"
        settings["MODEL__ROI_HEADS__IN_FEATURES"] = "('p3', 'p4', 'p5')"
    assert lgd_train(imitation_settings(small_data, tmp_path / "a", teacher, method, **settings)) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert says in last
    assert "MODEL.DISTILLATOR" in last


def test_weights_of_another_detector_are_told_with_the_setting_that_says_which(
    small_data, tmp_path, teacher, capsys
):
    wide = {"MODEL__FPN__OUT_CHANNELS": 48}
    assert lgd_train(imitation_settings(small_data, tmp_path / "a", teacher, "PKD", **wide)) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "TEACHER.WEIGHTS (with the student's settings, as MODEL.DISTILLATOR.TEACHER.CONFIG_FILE" in last
    assert "do not fit the model" in last


def test_a_teacher_of_another_detector_and_backbone(small_data, tmp_path, teacher):
    """An FCOS with another backbone learns from the RetinaNet, from that one's own recipe."""
    changes = {
        "MODEL__META_ARCHITECTURE": "FCOS",
        "MODEL__RESNETS__RES2_OUT_CHANNELS": 12,
        "MODEL__DISTILLATOR__TEACHER__CONFIG_FILE": teacher.parent / "config.yaml",
        "SOLVER__MAX_ITER": 1,
    }
    assert lgd_train(imitation_settings(small_data, tmp_path / "a", teacher, "PKD", **changes)) == 0
    (line,) = [line for line in read_metrics(tmp_path / "a") if "total_loss" in line]
    assert line["loss_distill"] > 0


@pytest.mark.parametrize("method", METHODS)
def test_a_backbone_alone_is_no_teacher(small_data, tmp_path, teacher, capsys, method):
    state = torch.load(teacher, weights_only=True)["model"]
    place = "student.backbone."
    torch.save(
        {k.removeprefix(place): x for k, x in state.items() if k.startswith(place)}, tmp_path / "part.pth"
    )
    assert lgd_train(imitation_settings(small_data, tmp_path / "a", tmp_path / "part.pth", method)) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "not a trained detector, so there is nothing to imitate; it lacks student." in last
