import pytest
import torch
from torch import nn

from lgd.build import build_model, place_model
from lgd.config.load import load_config
from lgd.config.values import ConfigError
from tests.detectors.small import make_retinanet


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
