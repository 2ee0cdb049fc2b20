import pytest
import torch
import torchvision
from torch import nn

from lgd.backbones.resnet import ResNet
from lgd.layers.norm import FrozenBatchNorm2d
from tests.layers.test_norm import randomized


def torchvision_names(state):
    """Our names for torchvision's ResNet weights."""
    names = {}
    for name, tensor in state.items():
        if name.startswith("fc.") or name.endswith("num_batches_tracked"):
            continue
        name = name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
        for i in (1, 2, 3):
            name = name.replace(f"bn{i}.", f"conv{i}.norm.")
        in_stage = name.startswith("layer")
        names[f"res{int(name[5]) + 1}{name[6:]}" if in_stage else f"stem.{name}"] = tensor
    return names


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet18", {"depth": 18, "res2_out_channels": 64}),
        ("resnet34", {"depth": 34, "res2_out_channels": 64}),
        ("resnet50", {"depth": 50}),
        ("resnext50_32x4d", {"depth": 50, "num_groups": 32, "width_per_group": 4}),
    ],
)
def test_like_torchvision(name, options):
    torch.manual_seed(0)
    theirs = getattr(torchvision.models, name)().double().eval()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            randomized(module)
    every_map = ["stem", "res2", "res3", "res4", "res5"]
    ours = ResNet(out_features=every_map, stride_in_1x1=False, **options).double()
    ours.load_state_dict(torchvision_names(theirs.state_dict()))
    x = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    expected = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x))))
    maps = ours(x)
    assert torch.allclose(maps["stem"], expected, atol=1e-12)
    for i in range(1, 5):
        expected = getattr(theirs, f"layer{i}")(expected)
        assert torch.allclose(maps[f"res{i + 1}"], expected, rtol=1e-9, atol=1e-9 * expected.std().item())


def test_states_its_maps():
    net = ResNet(depth=18, out_features=["res5", "res3"], stem_out_channels=16, res2_out_channels=32)
    assert net.channels == {"res3": 64, "res5": 256}
    assert net.strides == {"res3": 8, "res5": 32}
    maps = net(torch.randn(1, 3, 70, 90))
    assert {name: tuple(x.shape) for name, x in maps.items()} == {
        "res3": (1, 64, 9, 12),
        "res5": (1, 256, 3, 3),
    }


def test_builds_no_stage_that_nothing_reads():
    names = [
        name for name, _ in ResNet(depth=18, out_features=["res3"], res2_out_channels=64).named_children()
    ]
    assert names == ["stem", "res2", "res3"]


def test_101_and_groups():
    net = ResNet(depth=101, num_groups=32, width_per_group=8, stride_in_1x1=False)
    assert len(net.res4) == 23
    block = net.res5[0]
    assert (block.conv2.in_channels, block.conv2.groups, block.conv3.out_channels) == (2048, 32, 2048)


@pytest.mark.parametrize("stride_in_1x1", [True, False])
def test_which_convolution_takes_the_stride(stride_in_1x1):
    block = ResNet(depth=50, out_features=["res3"], stride_in_1x1=stride_in_1x1).res3[0]
    strides = [block.conv1.stride[0], block.conv2.stride[0], block.shortcut.stride[0]]
    assert strides == ([2, 1, 2] if stride_in_1x1 else [1, 2, 2])


def make_small(**kwargs):
    return ResNet(depth=50, stem_out_channels=8, res2_out_channels=16, width_per_group=4, **kwargs)


def test_dilated_res5_keeps_the_stride():
    plain, dilated = make_small(freeze_at=0), make_small(freeze_at=0, res5_dilation=2)
    assert dilated.strides == {"res3": 8, "res4": 16, "res5": 16}
    assert [block.conv2.dilation for block in dilated.res5] == [(2, 2)] * 3
    assert [block.conv2.dilation for block in dilated.res4] == [(1, 1)] * 6
    maps = dilated(torch.randn(1, 3, 70, 90))
    assert maps["res4"].shape[-2:] == maps["res5"].shape[-2:] == (5, 6)
    assert {name: x.shape for name, x in plain.state_dict().items()} == {
        name: x.shape for name, x in dilated.state_dict().items()
    }


def test_deformable_stages():
    on = (False, True, True, True)
    net = make_small(num_groups=4, deform_on_per_stage=on, deform_modulated=True, deform_num_groups=2)
    names = {name for name, _ in net.named_parameters() if "conv2_offset" in name}
    assert names == {
        f"res{stage}.{block}.conv2_offset.{kind}"
        for stage, num_blocks in ((3, 4), (4, 6), (5, 3))
        for block in range(num_blocks)
        for kind in ("weight", "bias")
    }
    assert net.res3[0].conv2_offset.weight.shape == (54, 32, 3, 3)
    assert make_small(deform_on_per_stage=on).res3[0].conv2_offset.weight.shape == (18, 8, 3, 3)
    assert not any(parameter.any() for name, parameter in net.named_parameters() if name in names)
    assert net.res3[0].conv2.weight.std() > 0
    sum(x.sum() for x in net(torch.randn(1, 3, 64, 64)).values()).backward()
    for name, parameter in net.named_parameters():
        assert (parameter.grad is not None) == (not name.startswith(("stem", "res2"))), name


@pytest.mark.parametrize("stride_in_1x1", [True, False])
def test_undisturbed_deformable_net_is_the_plain_one(stride_in_1x1):
    torch.manual_seed(0)
    plain = make_small(stride_in_1x1=stride_in_1x1).double()
    deformable = make_small(stride_in_1x1=stride_in_1x1, deform_on_per_stage=[True] * 4).double()
    assert not deformable.load_state_dict(plain.state_dict(), strict=False).unexpected_keys
    x = torch.randn(1, 3, 33, 70, dtype=torch.float64)
    for ours, theirs in zip(deformable(x).values(), plain(x).values(), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-9)


def test_bfloat16():
    torch.manual_seed(0)
    net, x = make_small(deform_on_per_stage=[True] * 4, deform_modulated=True), torch.randn(1, 3, 64, 64)
    expected = net(x)
    with torch.autocast("cpu", torch.bfloat16):
        for name, y in net(x).items():
            assert (y - expected[name]).abs().mean() < 0.05 * expected[name].abs().mean()


@pytest.mark.parametrize("freeze_at", [0, 1, 2, 5])
def test_freeze_at(freeze_at):
    net = ResNet(depth=18, norm="BN", stem_out_channels=8, res2_out_channels=8, freeze_at=freeze_at)
    stages = ["stem", "res2", "res3", "res4", "res5"]
    for index, name in enumerate(stages):
        module = net.get_submodule(name)
        frozen = index < freeze_at
        assert all(parameter.requires_grad != frozen for parameter in module.parameters())
        norms = {type(x) for x in module.modules() if isinstance(x, FrozenBatchNorm2d | nn.BatchNorm2d)}
        assert norms == {FrozenBatchNorm2d if frozen else nn.BatchNorm2d}


def test_gradients_reach_what_trains():
    net = ResNet(depth=50, stem_out_channels=8, res2_out_channels=16, width_per_group=4)
    sum(x.sum() for x in net(torch.randn(1, 3, 64, 64)).values()).backward()
    for name, parameter in net.named_parameters():
        assert (parameter.grad is not None) == (not name.startswith(("stem", "res2"))), name


def test_initialization():
    torch.manual_seed(0)
    weight = ResNet(depth=50).res5[0].conv2.weight
    assert weight.std().item() == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.01)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"depth": 20}, r"no ResNet of depth 20; choose one of \[18, 34, 50, 101\]"),
        ({"depth": 50, "out_features": ["res6"]}, r"no maps \['res6'\]; choose some of \['stem', 'res2'"),
        ({"depth": 18, "num_groups": 32}, "depth 18 has basic blocks, which have no 32 groups"),
        ({"depth": 34, "res5_dilation": 2}, "depth 34 has basic blocks, which have no dilation 2"),
        (
            {"depth": 18, "deform_on_per_stage": (False, True, True, True)},
            "depth 18 has basic blocks, which have no deformable convolutions",
        ),
    ],
)
def test_errors(kwargs, message):
    with pytest.raises(ValueError, match=message):
        ResNet(**kwargs)
