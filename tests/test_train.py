"""The command line on real files: what it leaves behind, and what it says when something is wrong."""

import json
import re
import shutil
import sys

import pytest
import torch
import yaml

from lgd import cli, train
from lgd.config.load import load_config
from tests.training import REPOSITORY, read_metrics, small_settings

DEMO = str(REPOSITORY / "configs/demo.yaml")


def lgd_train(settings, *flags):
    return train.main(["--config-file", DEMO, *flags, *settings])


@pytest.fixture(scope="module")
def finished(small_data, tmp_path_factory):
    """Output folder of a finished small run."""
    output = tmp_path_factory.mktemp("finished")
    assert lgd_train(small_settings(small_data, output, TEST__EVAL_PERIOD=6)) == 0
    return output


def fails(capsys, settings, *flags):
    """Run, expect exit code 2 and return the one line of the error."""
    assert lgd_train(settings, *flags) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


def test_a_run_leaves_config_log_metrics_events_checkpoints_and_results(finished, small_data):
    dataset = f"coco:{small_data}:val"
    results = json.loads((finished / "results.json").read_text())
    assert set(results[dataset]) == {"student", "teacher"}
    assert 0 <= results[dataset]["student"]["bbox"]["AP"] <= 100
    assert load_config(finished / "config.yaml").solver.max_iter == 12
    assert yaml.safe_load((finished / "config.yaml").read_text())["SEED"] == 5
    assert "student bbox" in (finished / "log.txt").read_text()
    assert list(finished.glob("events.out.tfevents.*"))
    assert (finished / "checkpoints" / "step_0000012.pth").exists()
    assert len(list((finished / "checkpoints").glob("*.pth"))) == 3
    folder = next((finished / "inference").iterdir())
    predictions = json.loads((folder / "predictions.json").read_text())
    assert {"image_id", "category_id", "bbox", "score"} <= set(predictions[0])
    assert (folder / "predictions_teacher.json").exists()


def test_metrics_hold_what_is_worth_watching(finished):
    lines = read_metrics(finished)
    steps = [line for line in lines if "total_loss" in line]
    assert [line["iteration"] for line in steps] == [2, 4, 6, 8, 10, 12]
    first = steps[0]
    parts = ("loss_cls", "loss_box_reg", "loss_cls.tea", "loss_box_reg.tea", "loss_distill")
    assert first["total_loss"] == pytest.approx(sum(first[part] for part in parts))
    assert {"lr_student", "lr_teacher", "grad_norm", "skipped_images"} <= set(first)
    assert [line["phase"] for line in steps[:2]] == ["freeze", "distill"]
    assert [line["iteration"] for line in lines if "eval" in line] == [6, 12]


def test_eval_only_of_the_checkpoint_gives_the_same_ap(finished, small_data, tmp_path):
    settings = small_settings(small_data, tmp_path, MODEL__WEIGHTS=finished / "model_final.pth")
    assert lgd_train(settings, "--eval-only") == 0
    assert json.loads((tmp_path / "results.json").read_text()) == json.loads(
        (finished / "results.json").read_text()
    )


def test_eval_only_makes_the_folder_for_decoded_pictures(finished, small_data, tmp_path, capsys):
    settings = {"MODEL__WEIGHTS": finished / "model_final.pth", "DATALOADER__CACHE_DIR": tmp_path / "kept"}
    (tmp_path / "kept").write_text("")
    line = fails(capsys, small_settings(small_data, tmp_path / "out", **settings), "--eval-only")
    assert f"DATALOADER.CACHE_DIR {tmp_path / 'kept'} cannot be written to: File exists" in line
    (tmp_path / "kept").unlink()
    assert lgd_train(small_settings(small_data, tmp_path / "out", **settings), "--eval-only") == 0
    assert (tmp_path / "kept").is_dir()


def test_eval_only_of_the_student_alone(finished, small_data, tmp_path, capsys):
    student = tmp_path / "student.safetensors"
    assert cli.main(["convert", str(finished / "model_final.pth"), str(student), "--to", "student"]) == 0
    settings = small_settings(
        small_data, tmp_path / "out", MODEL__WEIGHTS=student, MODEL__DISTILLATOR__EVAL_TEACHER=False
    )
    assert lgd_train(settings, "--eval-only") == 0
    (found,) = json.loads((tmp_path / "out" / "results.json").read_text()).values()
    (expected,) = json.loads((finished / "results.json").read_text()).values()
    assert found == {"student": expected["student"]}
    line = fails(capsys, small_settings(small_data, tmp_path, MODEL__WEIGHTS=student), "--eval-only")
    assert "holds the student alone; evaluate it with MODEL.DISTILLATOR.EVAL_TEACHER False" in line
    backbone = {
        name.removeprefix("student.backbone."): tensor
        for name, tensor in torch.load(finished / "model_final.pth", weights_only=True)["model"].items()
        if name.startswith("student.backbone.")
    }
    torch.save(backbone, tmp_path / "backbone.pth")
    settings = small_settings(small_data, tmp_path, MODEL__WEIGHTS=tmp_path / "backbone.pth")
    assert "not a trained detector, so there is nothing to evaluate" in fails(capsys, settings, "--eval-only")


def test_best_model_is_kept(finished):
    best = torch.load(finished / "model_best.pth", weights_only=True)
    state = torch.load(finished / "checkpoints" / "step_0000012.pth", weights_only=True)
    aps = {
        line["iteration"]: next(iter(line["eval"].values()))["student"]["bbox"]["AP"]
        for line in read_metrics(finished)
        if "eval" in line
    }
    assert state["best"]["AP"] == max(aps.values()) == aps[state["best"]["step"]]
    assert best["classes"]["names"] == state["classes"]["names"]


def test_plain_student_has_no_teacher_anywhere(small_data, tmp_path):
    settings = small_settings(
        small_data, tmp_path, MODEL__DISTILLATOR__ENABLED=False, SOLVER__MAX_ITER=2, TRAIN__ACCUMULATE_STEPS=2
    )
    assert lgd_train(settings) == 0
    (results,) = json.loads((tmp_path / "results.json").read_text()).values()
    assert set(results) == {"student"}
    assert {"loss_cls", "loss_box_reg"} == {
        key for key in read_metrics(tmp_path)[0] if key.startswith("loss_")
    }


def test_test_set_without_annotations_gives_predictions_only(small_data, finished, tmp_path):
    shutil.copytree(small_data, tmp_path / "data")
    path = tmp_path / "data" / "annotations" / "instances_val.json"
    content = json.loads(path.read_text())
    del content["annotations"]
    path.write_text(json.dumps(content))
    settings = small_settings(
        tmp_path / "data", tmp_path / "out", MODEL__WEIGHTS=finished / "model_final.pth"
    )
    assert lgd_train(settings, "--eval-only") == 0
    (results,) = json.loads((tmp_path / "out" / "results.json").read_text()).values()
    assert results == {"student": {"bbox": None}}
    assert list((tmp_path / "out" / "inference").rglob("predictions.json"))


def test_bfloat16_trains(small_data, tmp_path):
    settings = small_settings(small_data, tmp_path, SOLVER__AMP__ENABLED=True, SOLVER__MAX_ITER=2)
    assert lgd_train(settings) == 0


def test_wrong_class_count(small_data, tmp_path, capsys):
    line = fails(capsys, small_settings(small_data, tmp_path, NUM_CLASSES=80))
    assert "classes (" in line
    assert "but NUM_CLASSES is 80; set NUM_CLASSES" in line


def test_missing_data_config_and_weights(small_data, tmp_path, capsys):
    line = fails(capsys, small_settings(tmp_path / "nowhere", tmp_path / "out"))
    assert f"there is no file or folder {tmp_path / 'nowhere'}" in line
    line = fails(capsys, small_settings(small_data, tmp_path / "out", DATASETS__TRAIN="()"))
    assert "no data set is given to train on (DATASETS.TRAIN)" in line
    assert train.main(["--config-file", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml" in capsys.readouterr().err
    settings = small_settings(small_data, tmp_path, MODEL__WEIGHTS=tmp_path / "none.pth")
    assert "none.pth" in fails(capsys, settings)
    assert "MODEL.WEIGHTS" in fails(capsys, small_settings(small_data, tmp_path), "--eval-only")


def test_what_cannot_be_scored_stops_before_the_first_step(small_data, tmp_path, capsys, monkeypatch):
    data = shutil.copytree(small_data, tmp_path / "data")
    path = data / "annotations" / "instances_val.json"
    content = json.loads(path.read_text())
    del content["annotations"][0]["segmentation"]
    path.write_text(json.dumps(content))
    settings = small_settings(data, tmp_path / "out")
    line = fails(capsys, [*settings, "MODEL.DISTILLATOR.LABEL_ENCODER.LOAD_LABELMAP", "True"])
    assert f"{path}: annotations {content['annotations'][0]['id']} (image " in line
    monkeypatch.setitem(sys.modules, "pycocotools.cocoeval", None)
    line = fails(capsys, [*settings, "TRAIN.EVAL_BACKEND", "pycocotools"])
    assert "TRAIN.EVAL_BACKEND pycocotools: it is not installed; pip install pycocotools" in line
    assert not (tmp_path / "out" / "log.txt").exists()


def test_unknown_key_names_the_nearest(small_data, tmp_path, capsys):
    line = fails(capsys, [*small_settings(small_data, tmp_path), "SOLVER.MAX_ITERS", "3"])
    assert "SOLVER.MAX_ITER" in line


def test_checkpoint_of_another_model(small_data, finished, tmp_path, capsys):
    settings = small_settings(
        small_data, tmp_path, MODEL__WEIGHTS=finished / "model_final.pth", MODEL__FPN__OUT_CHANNELS=24
    )
    line = fails(capsys, settings)
    assert "model_final.pth" in line
    assert "of another shape" in line


def test_resume_with_another_model_batch_or_classes(small_data, finished, tmp_path, capsys):
    shutil.copytree(finished, tmp_path / "out")
    for change, expected in (
        ({"MODEL__FPN__OUT_CHANNELS": 24}, "of another shape"),
        ({"SOLVER__IMS_PER_BATCH": 2}, "keep SOLVER.IMS_PER_BATCH"),
        (
            {"MODEL__DISTILLATOR__LABEL_ENCODER__CATEGORY_FORMAT": "embedding"},
            "set MODEL.DISTILLATOR.LABEL_ENCODER.CATEGORY_FORMAT as it was trained",
        ),
    ):
        settings = small_settings(small_data, tmp_path / "out", SOLVER__MAX_ITER=14, **change)
        assert expected in fails(capsys, settings, "--resume")
    shutil.copytree(small_data, tmp_path / "data")
    for split in ("train", "val"):
        path = tmp_path / "data" / "annotations" / f"instances_{split}.json"
        content = json.loads(path.read_text())
        content["categories"][0]["name"] = "renamed"
        path.write_text(json.dumps(content))
    settings = small_settings(tmp_path / "data", tmp_path / "out", SOLVER__MAX_ITER=14)
    assert "renamed" in fails(capsys, settings, "--resume")


def test_batch_that_does_not_divide(small_data, tmp_path, capsys):
    line = fails(capsys, small_settings(small_data, tmp_path, TRAIN__ACCUMULATE_STEPS=3))
    assert "IMS_PER_BATCH 4" in line
    assert "ACCUMULATE_STEPS 3" in line


def test_non_finite_loss_names_step_and_images(small_data, tmp_path, capsys):
    line = fails(capsys, small_settings(small_data, tmp_path, SOLVER__BASE_LR=1e30, SOLVER__WARMUP_ITERS=0))
    assert re.search(r"non-finite loss at step \d+: .*; images \d+ \(\d+\.", line)


def test_bad_image_stops_with_its_name_or_is_skipped_and_counted(small_data, tmp_path, capsys):
    shutil.copytree(small_data, tmp_path / "data")
    broken = sorted((tmp_path / "data" / "train").iterdir())[0]
    broken.write_bytes(broken.read_bytes()[:100])
    settings = small_settings(tmp_path / "data", tmp_path / "out", SOLVER__MAX_ITER=6)
    line = fails(capsys, settings)
    assert broken.name in line
    assert line.endswith("go on without such images (DATALOADER.ON_BAD_IMAGE skip)")
    assert lgd_train([*settings, "DATALOADER.ON_BAD_IMAGE", "skip"]) == 0
    assert [line for line in read_metrics(tmp_path / "out") if "total_loss" in line][-1]["skipped_images"] > 0
    assert broken.name in (tmp_path / "out" / "log.txt").read_text()


def test_scaling_to_the_world_size_is_printed(small_data, tmp_path, capsys):
    settings = small_settings(
        small_data, tmp_path, SOLVER__REFERENCE_WORLD_SIZE=2, SOLVER__MAX_ITER=2, SOLVER__CHECKPOINT_PERIOD=10
    )
    assert lgd_train(settings) == 0
    assert "SOLVER.BASE_LR" in capsys.readouterr().out
    assert load_config(tmp_path / "config.yaml").solver.max_iter == 4


def test_unwritable_output(small_data, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert lgd_train(small_settings(small_data, tmp_path / "file" / "out", SOLVER__MAX_ITER=2)) == 2
    assert "file" in capsys.readouterr().err


def test_console_script(capsys):
    assert cli.main(["--help"]) == 0
    assert "train" in capsys.readouterr().out
    assert cli.main(["fly"]) == 2
    assert "unknown command 'fly'" in capsys.readouterr().err
    assert cli.main(["train", "--config-file", "none.yaml"]) == 2
