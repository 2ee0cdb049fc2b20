"""INPUT.RANGE auto: as the run or the weights were trained, or as measured."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lgd import train
from lgd.build import build_test_loader
from lgd.config.keys import flatten
from lgd.config.load import load_config
from lgd.config.values import ConfigError
from lgd.data.errors import DataError
from lgd.engine.checkpoint import Checkpoint
from lgd.run.data import RunData
from lgd.run.ranges import settle_range
from lgd.weights.report import WeightsError
from tests.data.sets import annotation, image_record, open_coco, write_coco
from tests.training import REPOSITORY, small_settings

CFG = load_config(str(REPOSITORY / "configs/demo.yaml"), ["MODEL.WEIGHTS", ""])


def data_of(root, lows=(), *, span=1000, dtype=np.uint16, name="{:03d}.png", split="train"):
    """A set of a picture for each of `lows`, whose values are from that to `span` above."""
    records = [image_record(k) | {"file_name": name.format(k)} for k in range(1, len(lows) + 1)]
    labels = [annotation(k, k) for k in range(1, len(lows) + 1)]
    path = write_coco(root, records, labels, split=split, with_files=False)
    for record, low in zip(records, lows, strict=True):
        values = np.linspace(low, low + span, 64 * 48).reshape(48, 64).astype(dtype)
        Image.fromarray(values).save(root / split / record["file_name"])
    index = open_coco(path, split)
    return RunData({"a set": index}, ["a set"], index, {})


def asking(value_range, weights=""):
    return replace(
        CFG,
        input=replace(CFG.input, range=value_range),
        model=replace(CFG.model, weights=str(weights)),
    )


def checkpoint_of(**settings):
    config = {key: value for key, value in flatten(CFG).items() if key != "INPUT.RANGE"}
    return Checkpoint(Path("step.pth"), 3, {"config": config | settings})


def weights_of(path, **settings):
    torch.save(
        {"format": "lgd", "model": {"student.x": torch.zeros(1)}, **checkpoint_of(**settings).state}, path
    )
    return path


def test_measured_over_the_set(tmp_path):
    cfg, lines = settle_range(CFG, data_of(tmp_path, [100, 3000, 700]), None)
    assert cfg.input.range == (100.0, 4000.0)
    assert "INPUT.RANGE [100, 4000] becomes 0 to 255: measured on 3 pictures of 16 bits" in lines[0]


def test_pictures_of_8_bits_leave_it_open(tmp_path):
    cfg, lines = settle_range(CFG, data_of(tmp_path, [0, 0], dtype=np.uint8), None)
    assert (cfg.input.range, lines) == ("auto", [])


def test_a_large_set_is_sampled_the_same_way_each_time(tmp_path, monkeypatch):
    monkeypatch.setattr("lgd.run.ranges._MOST_READ", 4)
    data = data_of(tmp_path, range(0, 20000, 1000))
    found = [settle_range(CFG, data, None) for _ in range(2)]
    assert found[0][0] == found[1][0]
    assert "on 4 pictures" in found[0][1][0]


def test_two_numbers_stay(tmp_path):
    cfg, lines = settle_range(asking((0.0, 16383.0)), data_of(tmp_path, [100]), None)
    assert (cfg.input.range, lines) == ((0.0, 16383.0), [])


def test_a_run_keeps_its_range(tmp_path):
    data = data_of(tmp_path, [100])
    saved = checkpoint_of(**{"INPUT.RANGE": (5.0, 4095.0)})
    assert settle_range(CFG, data, saved)[0].input.range == (5.0, 4095.0)
    assert settle_range(asking((0.0, 9.0)), data, saved)[0].input.range == (0.0, 9.0)
    # One from before there was a range took all of 16 bits.
    assert settle_range(CFG, data, checkpoint_of())[0].input.range == (0.0, 65535.0)
    assert settle_range(CFG, data, checkpoint_of(**{"INPUT.RANGE": "auto"}))[0].input.range == "auto"


def test_weights_keep_their_range(tmp_path):
    data = data_of(tmp_path / "data", [100])
    weights = weights_of(tmp_path / "model.pth", **{"INPUT.RANGE": (0.0, 4095.0)})
    cfg, lines = settle_range(asking("auto", weights), data, None)
    assert cfg.input.range == (0.0, 4095.0)
    assert f"as {weights} was trained with" in lines[0]
    cfg, lines = settle_range(asking((0.0, 99.0), weights), data, None)
    assert cfg.input.range == (0.0, 99.0)
    assert lines == [f"INPUT.RANGE [0, 99], but {weights} was trained with [0, 4095]"]
    eight_bits = weights_of(tmp_path / "coco.pth", **{"INPUT.RANGE": "auto"})
    assert settle_range(asking("auto", eight_bits), data, None)[0].input.range == (100.0, 1100.0)


@pytest.mark.parametrize("value", [5.0, "Auto", (1.0,), (9.0, 3.0), ("0", "9"), (0.0, float("nan")), None])
@pytest.mark.parametrize("asked", ["auto", (0.0, 9.0)])
def test_weights_whose_range_is_none(tmp_path, asked, value):
    data = data_of(tmp_path / "data", [100])
    weights = weights_of(tmp_path / "model.pth", **{"INPUT.RANGE": value})
    with pytest.raises(WeightsError, match=r"model\.pth: its INPUT\.RANGE is .*; give another file"):
        settle_range(asking(asked, weights), data, None)


def test_an_evaluation_alone_measures_its_test_sets(tmp_path):
    index = data_of(tmp_path, [100]).train
    cfg, _ = settle_range(CFG, RunData({}, (), None, {"a set": index}), None)
    assert cfg.input.range == (100.0, 1100.0)


def test_32_bits_end_the_run_with_the_way_out(tmp_path):
    data = data_of(tmp_path, [100], dtype=np.float32, name="{:03d}.tif")
    with pytest.raises(DataError, match=r"001\.tif: pixels of 32 bits.*INPUT\.RANGE"):
        settle_range(CFG, data, None)


@pytest.mark.parametrize("text", ["[9, 9]", "[9, 3]"])
def test_a_range_rises(text):
    with pytest.raises(ConfigError, match=r"INPUT\.RANGE .* must be \(lowest, highest\)"):
        load_config(str(REPOSITORY / "configs/demo.yaml"), ["INPUT.RANGE", text])


@pytest.mark.parametrize("text", ["[1, 2, 3]", "5", "whole", "[0, inf]"])
def test_a_range_is_two_numbers(text):
    with pytest.raises(ConfigError, match=r"INPUT\.RANGE expects 'auto' or a list \(2 of them"):
        load_config(str(REPOSITORY / "configs/demo.yaml"), ["INPUT.RANGE", text])


def test_a_training_keeps_the_grey_levels_and_hands_the_range_on(tmp_path):
    """12 bits of a camera in files of 16: trained on, evaluated and saved with the same range."""
    for split in ("train", "val"):
        data = data_of(tmp_path, [0, 0], span=4095, split=split)
    recipe = ["--config-file", str(REPOSITORY / "configs/demo.yaml")]
    changes = {"NUM_CLASSES": 0, "SOLVER__MAX_ITER": 2, "SOLVER__IMS_PER_BATCH": 2}
    assert train.main([*recipe, *small_settings(tmp_path, tmp_path / "run", **changes)]) == 0
    weights = tmp_path / "run/model_final.pth"
    assert torch.load(weights, weights_only=True)["config"]["INPUT.RANGE"] == (0.0, 4095.0)
    cfg = load_config(str(tmp_path / "run/config.yaml"))
    batch = next(iter(build_test_loader(cfg, data.train, pin_memory=False)))
    assert len(batch.images.unique()) >= 200
    changes |= {"MODEL__WEIGHTS": weights}
    assert train.main([*recipe, "--eval-only", *small_settings(tmp_path, tmp_path / "eval", **changes)]) == 0
    assert "INPUT.RANGE [0, 4095], as" in (tmp_path / "eval/log.txt").read_text()
