"""How large a batch a recipe may have."""

import pytest
import torch

from lgd.build import build_model
from lgd.config.load import load_config
from lgd.config.values import ConfigError
from lgd.data.catalog import open_dataset
from lgd.memory.worst_case import find_batch, tries_worst_shape
from tests.test_worst_case import DEMO, full_memory  # noqa: F401
from tests.training import small_settings

CPU = torch.device("cpu")


def make(small_data, **changes):
    changes = {"NUM_CLASSES": 4, "INPUT__MAX_SIZE_TRAIN": 96, **changes}
    cfg = load_config(DEMO, small_settings(small_data, "nowhere", **changes))
    return cfg, build_model(cfg), open_dataset(f"coco:{small_data}:train", small_data), CPU


def test_find_batch(small_data, full_memory):  # noqa: F811
    line = find_batch(*make(small_data))
    assert line.startswith("the largest batch is 3 images a rank, ")
    assert line.endswith("SOLVER.IMS_PER_BATCH up to 3 with 1 rank and TRAIN.ACCUMULATE_STEPS 1")


def test_masks_are_counted_where_they_are_read(small_data, full_memory):  # noqa: F811
    line = find_batch(*make(small_data, MODEL__DISTILLATOR__LABEL_ENCODER__LOAD_LABELMAP=True))
    assert " mask edges each; peak " in line


def test_no_image_fits(small_data, monkeypatch):
    monkeypatch.setattr("lgd.memory.worst_case.fits_memory", lambda *_, **__: False)
    with pytest.raises(ConfigError, match=r"out of memory with 1 image.*lower INPUT.MAX_SIZE_TRAIN"):
        find_batch(*make(small_data))


@pytest.mark.parametrize(("value", "expected"), [("auto", False), (True, True), (False, False)])
def test_when_it_is_tried(small_data, value, expected):
    cfg, *_ = make(small_data, TRAIN__TRY_WORST_SHAPE=value)
    assert tries_worst_shape(cfg, CPU) is expected
    assert tries_worst_shape(cfg, torch.device("cuda")) is (value in ("auto", True))
