from dataclasses import replace

import pytest
import torch

from lgd.weights.convention import check_input_convention
from lgd.weights.files import LoadedWeights
from lgd.weights.kind import InputConvention
from lgd.weights.report import WeightsError

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
BGR_MEAN, RGB_MEAN = (103.53, 116.28, 123.675), (123.675, 116.28, 103.53)
OURS = LoadedWeights(
    "lgd",
    {"student.backbone.res2.0.conv3.weight": torch.ones(1)},
    {
        "config": {
            "MODEL.RESNETS.STRIDE_IN_1X1": False,
            "INPUT.FORMAT": "RGB",
            "MODEL.PIXEL_MEAN": RGB_MEAN,
            "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
        }
    },
)

RAW = InputConvention(True, "BGR", BGR_MEAN, (1.0, 1.0, 1.0))
STANDARD = InputConvention(False, "RGB", RGB_MEAN, (58.395, 57.12, 57.375))


@pytest.mark.parametrize(
    ("weights", "config"),
    [
        (MSRA, RAW),
        (MSRA, replace(RAW, pixel_mean=(102.9801, 115.9465, 122.7717))),  # the mean that Detectron uses
        (RESNEXT, InputConvention(False, "BGR", BGR_MEAN, (57.375, 57.12, 58.395))),
        (TORCHVISION, STANDARD),
        (TORCHVISION_18, replace(STANDARD, stride_in_1x1=True)),
        (CONVERTED, STANDARD),
        (OURS, STANDARD),
        (LoadedWeights("detectron2-backbone", {}), RAW),
        (LoadedWeights("lgd", {}), replace(STANDARD, stride_in_1x1=True)),
        (LoadedWeights("lgd", {}, {"config": {"SEED": 1}}), RAW),
        (LoadedWeights("swin-backbone", {}), RAW),
        (LoadedWeights("torchvision-swin", {}), RAW),
    ],
)
def test_fitting_settings_pass(weights, config):
    assert check_input_convention(weights, config) is None


@pytest.mark.parametrize("weights", [TORCHVISION, OURS])
def test_each_mismatch_says_what_to_set(weights):
    message = check_input_convention(weights, RAW)
    assert message is not None
    assert "MODEL.RESNETS.STRIDE_IN_1X1 False" in message
    assert "INPUT.FORMAT RGB" in message
    assert "MODEL.PIXEL_MEAN [123.675, 116.28, 103.53]" in message
    assert "MODEL.PIXEL_STD [58.395, 57.12, 57.375]" in message


@pytest.mark.parametrize(
    ("change", "setting"),
    [
        ({"stride_in_1x1": False}, "MODEL.RESNETS.STRIDE_IN_1X1 True"),
        ({"pixel_mean": RGB_MEAN}, "MODEL.PIXEL_MEAN [103.53, 116.28, 123.675]"),
        ({"pixel_std": (57.375, 57.12, 58.395)}, "MODEL.PIXEL_STD [1.0, 1.0, 1.0]"),
        ({"image_format": "RGB"}, "INPUT.FORMAT BGR"),
    ],
)
def test_only_what_differs_is_named(change, setting):
    weights = LoadedWeights("msra-backbone", {**MSRA.tensors, "res2_0_branch2c_w": torch.ones(1)})
    message = check_input_convention(weights, replace(RAW, **change))
    assert message is not None
    assert message.endswith(f"config says; set {setting}")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            ("INPUT.FORMAT", None),
            ("MODEL.PIXEL_MEAN", 5),
            ("MODEL.PIXEL_MEAN", [1, 2]),
            ("MODEL.PIXEL_MEAN", "abc"),
        ),
        *(("MODEL.PIXEL_STD", [1, 2, None]), ("MODEL.PIXEL_STD", [1, 2, 10**400])),
        ("MODEL.RESNETS.STRIDE_IN_1X1", "yes"),
    ],
)
def test_nonsense_in_a_file_of_ours(name, value):
    weights = replace(OURS, metadata={"config": {**OURS.metadata["config"], name: value}})
    with pytest.raises(WeightsError, match="the input that it was trained with makes no sense"):
        check_input_convention(weights, STANDARD)
