"""A trained model's file without a training: a small net of random weights that detects at random."""

import torch

from lgd.build import build_model
from lgd.config.keys import flatten
from lgd.config.load import load_config
from lgd.weights.export import write_student
from tests.training import REPOSITORY, small_settings

NAMES = ("cat", "größer 猫", "dog/wolf")
CLASSES = {"names": list(NAMES), "category_ids": [1, 7, 3]}


def tiny_config(**changes):
    settings = small_settings("unused", "unused", NUM_CLASSES=3, MODEL__DISTILLATOR__ENABLED=False, **changes)
    return load_config(REPOSITORY / "configs/demo.yaml", settings)


def write_tiny(path, **changes):
    """Write a student of 3 classes that finds something everywhere, with scores about 0.01."""
    torch.manual_seed(3)
    cfg = tiny_config(**changes)
    model = build_model(cfg)
    write_student(path, model, {"config": flatten(cfg), "classes": CLASSES})
    return path
