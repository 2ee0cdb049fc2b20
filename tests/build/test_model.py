import logging

import pytest
import torch
from torch import nn

from lgd.build import build_model, place_model
from lgd.config.load import load_config
from lgd.config.values import ConfigError
from tests.detectors.small import make_retinanet
from tests.training import SMALL


@pytest.mark.parametrize("value", [True, False])
def test_memory_layout_and_trials_of_algorithms_follow_the_recipe(tmp_path, monkeypatch, value):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", not value)
    (tmp_path / "recipe.yaml").write_text("")
    settings = ["TRAIN.CHANNELS_LAST", str(value), "CUDNN_BENCHMARK", str(value)]
    cfg = load_config(tmp_path / "recipe.yaml", settings)
    model = place_model(cfg, make_retinanet(), torch.device("cpu"))
    weights = [x.weight for x in model.modules() if isinstance(x, nn.Conv2d) and x.kernel_size != (1, 1)]
    assert weights
    assert all(weight.is_contiguous(memory_format=torch.channels_last) is value for weight in weights)
    assert torch.backends.cudnn.benchmark is value


def test_sizes_for_which_there_is_no_memory():
    cfg = load_config("demo", ["MODEL.RESNETS.STEM_OUT_CHANNELS", str(2**62)])
    with pytest.raises(ConfigError, match="the model of MODEL and NUM_CLASSES cannot be built: "):
        build_model(cfg)
    with pytest.raises(ConfigError, match=r"NUM_CONVS expects an integer in \[0, 1000\], got '1001'"):
        load_config("demo", ["MODEL.RETINANET.NUM_CONVS", "1001"])


def build_small(num_classes, *settings):
    small = [str(x) for pair in SMALL.items() for x in pair]
    torch.manual_seed(0)
    return build_model(load_config("demo", [*small, "NUM_CLASSES", str(num_classes), *settings]))


def test_the_label_encoder_is_as_wide_as_is_asked_for():
    shapes = [
        (x.conv3.out_features, x.stn_feat.fc3.in_features)
        for width in ("1024", "64")
        for x in [build_small(3, "MODEL.DISTILLATOR.LABEL_ENCODER.WIDTH", width).teacher.label_encoder]
    ]
    assert shapes == [(1024, 256), (64, 16)]


def said_by_build(caplog):
    return [record.message for record in caplog.records if record.name.startswith("lgd.build")]


FORMAT = "MODEL.DISTILLATOR.LABEL_ENCODER.CATEGORY_FORMAT"


def test_few_classes_are_told_as_in_the_paper(caplog):
    caplog.set_level(logging.INFO, logger="lgd.build")
    chosen, paper = build_small(80).state_dict(), build_small(80, FORMAT, "one_hot").state_dict()
    assert chosen.keys() == paper.keys()
    assert all(torch.equal(tensor, paper[name]) for name, tensor in chosen.items())
    assert chosen["teacher.label_encoder.conv1.weight"].shape == (64, 84)
    assert said_by_build(caplog) == []


def test_many_classes_are_embedded_which_is_said(caplog):
    caplog.set_level(logging.INFO, logger="lgd.build")
    chosen = build_small(201).state_dict()
    assert chosen["teacher.category_embedding.weight"].shape == (201, 64)
    assert said_by_build(caplog) == [
        "201 classes: the teacher is told each by 64 learned numbers, since they are more than 200 "
        "(MODEL.DISTILLATOR.LABEL_ENCODER.CATEGORY_FORMAT auto; one_hot is the paper's)"
    ]
    assert "teacher.category_embedding.weight" in build_small(3, FORMAT, "embedding").state_dict()
    assert "teacher.category_embedding.weight" not in build_small(201, FORMAT, "one_hot").state_dict()
    assert len(said_by_build(caplog)) == 1
