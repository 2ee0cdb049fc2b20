"""What each optimizer trains, and at which rate."""

import torch

from lgd.build import build_model, build_sides
from lgd.config.load import load_config
from lgd.engine.optim import set_lr
from tests.tiny import tiny_config
from tests.training import REPOSITORY, small_settings


def sides_of(model, **settings):
    return {side.name: side for side in build_sides(tiny_config(**settings), model, torch.device("cpu"))}


def test_the_backbone_may_have_a_rate_of_its_own_and_its_neck_not():
    model = build_model(tiny_config())
    side = sides_of(model, SOLVER__BACKBONE_MULTIPLIER=0.25)["student"]
    optimizer = side.optimizer
    set_lr(optimizer, 0.4, side.multiplier)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        assert rates.pop(id(parameter)) == (0.1 if name.startswith("student.backbone.") else 0.4), name
    assert not rates
    assert optimizer.param_groups[0]["lr"] == 0.4  # the rate that is logged


def test_one_rate_is_one_group():
    model = build_model(tiny_config())
    assert len(sides_of(model)["student"].optimizer.param_groups) == 1


def test_the_teacher_has_one_rate():
    words = small_settings("unused", "unused", NUM_CLASSES=3, SOLVER__BACKBONE_MULTIPLIER=0.25)
    cfg = load_config(REPOSITORY / "configs/demo.yaml", words)
    sides = build_sides(cfg, build_model(cfg), torch.device("cpu"))
    assert {side.name: len(side.optimizer.param_groups) for side in sides} == {"student": 2, "teacher": 1}


def test_adamw_is_fused_on_a_cpu_and_sgd_is_not_unless_told_otherwise():
    model = build_model(tiny_config())
    for settings, fused in (
        ({"SOLVER__OPTIMIZER": "ADAMW"}, True),
        ({"SOLVER__OPTIMIZER": "SGD"}, None),
        ({"SOLVER__OPTIMIZER": "SGD", "TRAIN__FUSED_OPTIMIZER": True}, True),
        ({"SOLVER__OPTIMIZER": "ADAMW", "TRAIN__FUSED_OPTIMIZER": False}, None),
    ):
        assert sides_of(model, **settings)["student"].optimizer.defaults["fused"] is fused, settings
