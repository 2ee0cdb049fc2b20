import pytest
import torch
import torchvision

from lgd.backbones.resnet import ResNet
from lgd.weights.backbones import (
    backbone_from_detectron2,
    backbone_from_detectron2_pkl,
    backbone_from_torchvision,
)
from lgd.weights.kind import BACKBONE
from lgd.weights.report import WeightsError
from tests.weights.modules import randomise, small_resnet


def caffe2_name(name: str, norm: dict[str, str]) -> str:
    """The name that detectron2's ImageNet files give to our ResNet's `name`."""
    *block, conv, tensor = name.replace(".norm.", ".norm_").split(".")
    layer = {"shortcut": "branch1", "conv1": "branch2a", "conv2": "branch2b", "conv3": "branch2c"}[conv]
    if block == ["stem"]:
        layer, block = ("res_conv1" if "norm" in tensor else "conv1"), []
    return "_".join([*block, layer, norm.get(tensor, "w")])


NEW = {
    "norm_weight": "bn_gamma",
    "norm_bias": "bn_beta",
    "norm_running_mean": "bn_running_mean",
    "norm_running_var": "bn_running_var",
}
SHORT = {
    "norm_weight": "bn_s",
    "norm_bias": "bn_b",
    "norm_running_mean": "bn_rm",
    "norm_running_var": "bn_riv",
}


@pytest.mark.parametrize("norm", [NEW, SHORT])
def test_caffe2_names_with_statistics(norm):
    state = randomise(small_resnet().state_dict())
    blobs = {caffe2_name(name, norm): tensor for name, tensor in state.items()}
    assert "res_conv1_" + norm["norm_weight"] in blobs
    assert "res2_0_branch1_w" in blobs
    assert "res4_5_branch2c_" + norm["norm_bias"] in blobs
    extra = {name: torch.ones(4) for name in ("fc1000_w", "fc1000_b", "conv1_b", "conv1_w_momentum")}
    renamed, dropped = backbone_from_detectron2_pkl(blobs | extra)
    assert set(dropped) == set(extra)
    assert renamed.keys() == {BACKBONE + name for name in state}
    for name, tensor in state.items():
        assert torch.equal(renamed[BACKBONE + name], tensor)


def test_folded_statistics_become_the_identity():
    state = randomise(small_resnet().state_dict())
    blobs = {caffe2_name(name, SHORT): tensor for name, tensor in state.items() if ".running_" not in name}
    blobs["res2_0_branch1_b"] = torch.zeros(8)
    renamed, dropped = backbone_from_detectron2_pkl(blobs)
    assert dropped == ("res2_0_branch1_b",)
    assert renamed.keys() == {BACKBONE + name for name in state}
    assert (renamed[BACKBONE + "res3.0.conv2.norm.running_mean"] == 0).all()
    torch.testing.assert_close(
        renamed[BACKBONE + "res3.0.conv2.norm.running_var"] + 1e-5, torch.ones(8), rtol=0, atol=1e-7
    )


@pytest.mark.parametrize(
    ("depth", "make"), [(18, torchvision.models.resnet18), (50, torchvision.models.resnet50)]
)
def test_torchvision_weights_give_torchvision_features(depth, make):
    theirs = make().eval()
    theirs.load_state_dict(
        {
            name: tensor
            if "num_batches" in name or tensor.ndim > 1
            else 1.0 + 0.1 * torch.randn_like(tensor) * ("weight" in name or "var" in name)
            for name, tensor in theirs.state_dict().items()
        }
    )
    ours = ResNet(depth=depth, stride_in_1x1=False, res2_out_channels=256 if depth == 50 else 64).eval()
    renamed, dropped = backbone_from_torchvision(theirs.state_dict())
    ours.load_state_dict({name.removeprefix(BACKBONE): tensor for name, tensor in renamed.items()})
    assert {"fc.weight", "fc.bias", "bn1.num_batches_tracked"} < set(dropped)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(images))))
        maps = ours(images)
        for stage, name in enumerate(("res2", "res3", "res4", "res5"), start=1):
            x = theirs.get_submodule(f"layer{stage}")(x)
            if name in maps:
                torch.testing.assert_close(maps[name], x, rtol=1e-4, atol=1e-4 * x.abs().max().item())


def test_detectron2_names_get_our_prefix():
    state = randomise(small_resnet().state_dict())
    extra = {"stem.fc.weight": torch.ones(1), "stem.conv1.norm.num_batches_tracked": torch.tensor(1)}
    renamed, dropped = backbone_from_detectron2(state | extra)
    assert renamed.keys() == {BACKBONE + name for name in state}
    assert set(dropped) == set(extra)


@pytest.mark.parametrize(
    ("read", "names"),
    [
        (backbone_from_detectron2_pkl, ["conv1_w", "conv_rpn_w", "res2_0_branch2a_gn_s"]),
        (backbone_from_torchvision, ["conv1.weight", "layer1.0.se.weight", "classifier.4.bias"]),
        (backbone_from_detectron2, ["stem.conv1.weight", "stem.conv1_1.weight", "roi_heads.x"]),
    ],
)
def test_names_that_no_resnet_has_are_listed(read, names):
    with pytest.raises(WeightsError, match=r"^2 names that a ResNet does not have") as caught:
        read({name: torch.ones(1) for name in names})
    assert all(name in str(caught.value) for name in names[1:])
