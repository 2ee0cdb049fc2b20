import pytest
import torch

from lgd.backbones.efficientnet_lite import EfficientNetLite
from lgd.backbones.resnet import ResNet
from lgd.backbones.swin import SwinTransformer
from lgd.backbones.timm_features import TimmFeatures
from lgd.build.backbones import build_backbone
from lgd.config.load import load_config
from lgd.config.values import ConfigError
from lgd.layers.norm import FrozenBatchNorm2d

SMALL = {
    "resnet": (
        "MODEL.RESNETS.RES2_OUT_CHANNELS 16 MODEL.RESNETS.STEM_OUT_CHANNELS 8 MODEL.RESNETS.WIDTH_PER_GROUP 4"
    ),
    "swint": (
        "MODEL.SWINT.EMBED_DIM 8 MODEL.SWINT.NUM_HEADS (1,2,4,8) MODEL.SWINT.DEPTHS (2,2,2,2) "
        "MODEL.BACKBONE.FREEZE_AT -1"
    ),
}
FROM_RES2 = (
    "MODEL.RESNETS.OUT_FEATURES ['res2','res3','res4','res5'] "
    "MODEL.FPN.IN_FEATURES ['res2','res3','res4','res5']"
)
FROM_STAGE3 = (
    "MODEL.SWINT.OUT_FEATURES ['stage3','stage4','stage5'] MODEL.FPN.IN_FEATURES ['stage3','stage4','stage5']"
)
FROM_STAGE2 = "MODEL.FPN.IN_FEATURES ['stage2','stage3','stage4','stage5']"


@pytest.fixture
def make_config(tmp_path):
    def make(name, settings):
        kind = "swint" if "swint" in name else "resnet"
        words = (
            f"MODEL.BACKBONE.NAME build_{name}_fpn_backbone MODEL.FPN.OUT_CHANNELS 8 {SMALL[kind]} {settings}"
        )
        (tmp_path / "empty.yaml").write_text("")
        return load_config(tmp_path / "empty.yaml", words.split())

    return make


@pytest.mark.parametrize(
    ("name", "settings", "levels", "source"),
    [
        ("retinanet_resnet", "", "34567", "res5"),
        ("resnet", FROM_RES2, "23456", "p5"),
        ("retinanet_swint", FROM_STAGE3, "34567", "p5"),
        ("retinanet_swint", f"{FROM_STAGE3} MODEL.FPN.TOP_LEVELS 1", "3456", "p5"),
        ("retinanet_swint", f"{FROM_STAGE3} MODEL.FPN.TOP_LEVELS 0", "345", None),
        ("swint", FROM_STAGE2, "23456", "p5"),
    ],
)
def test_backbones_and_their_levels(make_config, name, settings, levels, source):
    backbone, neck = build_backbone(make_config(name, settings))
    assert isinstance(backbone, SwinTransformer if "swint" in name else ResNet)
    assert neck.strides == {f"p{level}": 2 ** int(level) for level in levels}
    assert (neck.top_block.source if neck.top_block else None) == source
    maps = neck(backbone(torch.randn(1, 3, 64, 96)))
    assert {level: x.shape for level, x in maps.items()} == {
        level: (1, 8, -(-64 // stride), -(-96 // stride)) for level, stride in neck.strides.items()
    }


@pytest.mark.parametrize(
    ("name", "kind", "channels", "maps"),
    [
        ("resnet", ResNet, [512, 1024, 2048], "res"),
        ("resnet18", ResNet, [128, 256, 512], "res"),
        ("resnet34", ResNet, [128, 256, 512], "res"),
        ("efficientnet_lite0", EfficientNetLite, [40, 112, 320], "stage"),
        ("efficientnet_lite2", EfficientNetLite, [48, 120, 352], "stage"),
    ],
)
def test_a_name_alone_has_the_neck_of_its_detector(tmp_path, name, kind, channels, maps):
    (tmp_path / "empty.yaml").write_text("")
    for detector, numbers, levels in (("FCOS", "345", "34567"), ("GeneralizedRCNN", "2345", "23456")):
        stages = [f"{maps}{number}" for number in numbers]
        words = f"MODEL.BACKBONE.NAME {name} MODEL.META_ARCHITECTURE {detector} MODEL.FPN.OUT_CHANNELS 8"
        names = ["MODEL.FPN.IN_FEATURES", str(stages), "MODEL.RESNETS.OUT_FEATURES", str(stages)]
        backbone, neck = build_backbone(load_config(tmp_path / "empty.yaml", [*words.split(), *names]))
        assert isinstance(backbone, kind)
        assert list(backbone.channels.values())[-3:] == channels
        assert list(neck.strides) == [f"p{level}" for level in levels]


def test_a_backbone_without_a_section_of_its_own_takes_norm_and_freezing(tmp_path):
    (tmp_path / "empty.yaml").write_text("")
    words = "MODEL.BACKBONE.NAME resnet18 MODEL.BACKBONE.NORM BN MODEL.BACKBONE.FREEZE_AT 1"
    backbone, neck = build_backbone(load_config(tmp_path / "empty.yaml", words.split()))
    assert isinstance(backbone.res2[0].conv1.norm, torch.nn.BatchNorm2d)
    assert isinstance(backbone.stem.conv1.norm, FrozenBatchNorm2d)
    assert neck.top_block.source == "res5"  # as over every ResNet


def test_a_model_of_timm_is_named_with_its_scheme(tmp_path):
    pytest.importorskip("timm")
    (tmp_path / "empty.yaml").write_text("")
    words = (
        "MODEL.BACKBONE.NAME timm://mobilenetv3_small_050 MODEL.FPN.IN_FEATURES ['stage3','stage4','stage5']"
    )
    backbone, neck = build_backbone(load_config(tmp_path / "empty.yaml", words.split()))
    assert isinstance(backbone, TimmFeatures)
    maps = neck(backbone(torch.randn(1, 3, 64, 96)))
    assert {level: x.shape[2:] for level, x in maps.items()} == {
        f"p{level}": (-(-64 // 2**level), -(-96 // 2**level)) for level in (3, 4, 5, 6, 7)
    }


@pytest.mark.parametrize("name", ["resnet://x", "build_retinanet_timm://x_fpn_backbone", "Resnet", ""])
def test_other_names_are_refused_with_those_that_there_are(tmp_path, name):
    (tmp_path / "empty.yaml").write_text("")
    with pytest.raises(ConfigError, match=r"^MODEL.BACKBONE.NAME '.*': there is resnet, swint, .*, timm://"):
        build_backbone(load_config(tmp_path / "empty.yaml", ["MODEL.BACKBONE.NAME", name]))


def test_options_of_the_resnet(make_config):
    settings = (
        "MODEL.RESNETS.NUM_GROUPS 4 MODEL.RESNETS.STRIDE_IN_1X1 False MODEL.RESNETS.DEFORM_MODULATED True "
        "MODEL.RESNETS.DEFORM_ON_PER_STAGE [False,False,True,True] MODEL.RESNETS.DEFORM_NUM_GROUPS 2 "
        "MODEL.RESNETS.RES5_DILATION 2 MODEL.RESNETS.OUT_FEATURES ['res3','res4','res5'] "
        "MODEL.FPN.IN_FEATURES ['res3','res4'] MODEL.FPN.FUSE_TYPE avg MODEL.BACKBONE.FREEZE_AT 1"
    )
    backbone, neck = build_backbone(make_config("resnet", settings))
    assert backbone.res3[0].conv2_offset is None
    assert backbone.res4[0].conv2_offset.out_channels == 54
    assert backbone.res4[0].conv2.stride == (2, 2)
    assert backbone.res5[0].conv2.dilation == (2, 2)
    assert backbone.res2[0].conv2.groups == 4
    assert [p.requires_grad for p in (backbone.stem.conv1.weight, backbone.res2[0].conv1.weight)] == [
        False,
        True,
    ]
    assert neck.fuse_type == "avg"
    assert list(neck.strides) == ["p3", "p4", "p5"]


def test_options_of_the_swin_transformer(make_config):
    settings = (
        f"{FROM_STAGE2} MODEL.SWINT.APE True MODEL.SWINT.DROP_PATH_RATE 0.7 MODEL.SWINT.WINDOW_SIZE 5 "
        "MODEL.SWINT.MLP_RATIO 2.0 MODEL.BACKBONE.FREEZE_AT 0"
    )
    backbone, _ = build_backbone(make_config("swint", settings))
    assert backbone.absolute_pos_embed is not None
    last = backbone.layers[3].blocks[1]
    assert last.drop_path.p == pytest.approx(0.7)
    assert (last.window_size, last.shift) == (5, 2)
    assert last.mlp.fc1.out_features == 2 * 64
    assert not backbone.patch_embed.proj.weight.requires_grad
    assert backbone.layers[0].blocks[0].norm1.weight.requires_grad


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        (
            "resnet",
            "MODEL.FPN.IN_FEATURES ['res2','res3']",
            r"MODEL.FPN.IN_FEATURES \('res2', 'res3'\) must be maps of the backbone's OUT_FEATURES",
        ),
        ("retinanet_swint", f"{FROM_STAGE3} MODEL.FPN.TOP_LEVELS 3", "TOP_LEVELS: .* 1 or 2 levels"),
        (
            "resnet",
            "MODEL.RESNETS.RES5_DILATION 2",
            r"MODEL.FPN: FPN needs maps whose strides double, not \[8, 16, 16",
        ),
        ("resnet", "MODEL.RESNETS.DEPTH 18 MODEL.RESNETS.NUM_GROUPS 32", "MODEL.RESNETS: .* no 32 groups"),
        ("swint", "MODEL.SWINT.NUM_HEADS (1,3,4,8)", "MODEL.SWINT: 3 heads don't divide the 16"),
        (
            "resnet8",
            "",
            r"NAME 'build_resnet8_fpn_backbone': there is resnet, swint, .*; did you mean resnet18\?",
        ),
        ("efficientnet_lite0", "", r"MODEL.FPN.IN_FEATURES: an EfficientNet-Lite has no maps \['res3'"),
    ],
)
def test_errors(make_config, name, settings, message):
    with pytest.raises(ConfigError, match=message):
        build_backbone(make_config(name, settings))


@pytest.mark.parametrize(("name", "settings"), [("resnet", FROM_RES2), ("swint", FROM_STAGE2)])
def test_reference_order_is_the_same_to_rounding(make_config, name, settings):
    settings += " MODEL.SWINT.DROP_PATH_RATE 0.0"
    x, maps = torch.randn(2, 3, 64, 96, dtype=torch.float64), []
    for switch in ("", " MODEL.BACKBONE.REFERENCE_ORDER True"):
        torch.manual_seed(0)
        backbone, neck = build_backbone(make_config(name, settings + switch))
        maps.append((backbone.double()(x), neck.double()(backbone(x))))
    assert all(x.is_contiguous() for x in maps[1][0].values())
    torch.testing.assert_close(maps[1], maps[0], rtol=1e-9, atol=1e-12)
    assert not torch.equal(maps[1][1]["p2"], maps[0][1]["p2"])
