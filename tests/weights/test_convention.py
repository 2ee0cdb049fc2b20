import pytest
import torch

from lgd.weights.convention import check_input_convention
from lgd.weights.files import LoadedWeights

MSRA = LoadedWeights(
    "msra-backbone", {"conv1_w": torch.ones(1), "res2_0_branch2b_w": torch.ones(64, 64, 3, 3)}
)
RESNEXT = LoadedWeights(
    "msra-backbone", {"res2_0_branch2b_w": torch.ones(256, 8, 3, 3), "res2_0_branch2c_w": torch.ones(1)}
)
TORCHVISION = LoadedWeights("torchvision-backbone", {"layer1.0.conv3.weight": torch.ones(1)})
TORCHVISION_18 = LoadedWeights("torchvision-backbone", {"layer1.0.conv2.weight": torch.ones(1)})
CONVERTED = LoadedWeights(
    "detectron2-backbone", {"res2.0.conv3.weight": torch.ones(1)}, {"__author__": "torchvision"}
)

RAW = {"pixel_std": (1.0, 1.0, 1.0), "image_format": "BGR"}
STANDARD = {"pixel_std": (58.395, 57.12, 57.375), "image_format": "RGB"}


@pytest.mark.parametrize(
    ("weights", "settings"),
    [
        (MSRA, {"stride_in_1x1": True, **RAW}),
        (RESNEXT, {"stride_in_1x1": False, "pixel_std": (57.375, 57.12, 58.395), "image_format": "BGR"}),
        (TORCHVISION, {"stride_in_1x1": False, **STANDARD}),
        (TORCHVISION_18, {"stride_in_1x1": True, **STANDARD}),
        (CONVERTED, {"stride_in_1x1": False, **STANDARD}),
        (LoadedWeights("detectron2-backbone", {}), {"stride_in_1x1": True, **RAW}),
        (LoadedWeights("lgd", {}), {"stride_in_1x1": True, **STANDARD}),
    ],
)
def test_fitting_settings_pass(weights, settings):
    assert check_input_convention(weights, **settings) is None


def test_each_mismatch_says_what_to_set():
    message = check_input_convention(TORCHVISION, stride_in_1x1=True, **RAW)
    assert message is not None
    assert "MODEL.RESNETS.STRIDE_IN_1X1 False" in message
    assert "INPUT.FORMAT RGB" in message
    assert "MODEL.PIXEL_MEAN [123.675, 116.28, 103.53]" in message
    assert "MODEL.PIXEL_STD [58.395, 57.12, 57.375]" in message


def test_only_what_differs_is_named():
    weights = LoadedWeights("msra-backbone", {**MSRA.tensors, "res2_0_branch2c_w": torch.ones(1)})
    message = check_input_convention(weights, stride_in_1x1=False, **RAW)
    assert message is not None
    assert message.endswith("set MODEL.RESNETS.STRIDE_IN_1X1 True")
