"""FGFI on the command line: the student of an earlier run as the teacher, resume, errors."""

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


def imitation_settings(small_data, output, teacher, **changes):
    return small_settings(
        small_data,
        output,
        MODEL__DISTILLATOR__METHOD="FGFI",
        MODEL__DISTILLATOR__TEACHER__WEIGHTS=teacher,
        MODEL__DISTILLATOR__PRE_NONDISTILL_ITERS=0,
        SOLVER__MAX_ITER=6,
        **changes,
    )


def test_a_student_imitates_a_trained_detector(small_data, tmp_path, teacher):
    assert lgd_train(imitation_settings(small_data, tmp_path / "a", teacher)) == 0
    steps = [line for line in read_metrics(tmp_path / "a") if "total_loss" in line]
    assert all(line["loss_distill"] > 0 for line in steps)
    state = torch.load(tmp_path / "a" / "model_final.pth", weights_only=True)["model"]
    trained = torch.load(teacher, weights_only=True)["model"]
    of_teacher = {name: x for name, x in state.items() if name.startswith("teacher.")}
    assert of_teacher.keys() == {name.replace("student.", "teacher.", 1) for name in trained}
    for name, value in trained.items():
        assert_close(of_teacher[name.replace("student.", "teacher.", 1)], value, rtol=0, atol=0)


def test_resume_does_not_need_the_teachers_file_again(small_data, tmp_path, teacher):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    copy = tmp_path / "teacher.pth"
    copy.write_bytes(teacher.read_bytes())
    assert lgd_train(imitation_settings(small_data, whole, teacher)) == 0
    assert lgd_train(imitation_settings(small_data, halves, copy)) == 0
    (halves / "checkpoints" / "step_0000006.pth").unlink()
    copy.unlink()
    assert lgd_train(imitation_settings(small_data, halves, copy), "--resume") == 0
    states = [torch.load(x / "model_final.pth", weights_only=True)["model"] for x in (whole, halves)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_teacher_without_weights_is_refused(small_data, tmp_path, capsys):
    assert lgd_train(imitation_settings(small_data, tmp_path, "")) == 2
    assert "FGFI needs MODEL.DISTILLATOR.TEACHER.WEIGHTS, a trained detector" in capsys.readouterr().err
