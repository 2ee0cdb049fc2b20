import sys

import pytest
import torch
from torch import nn

from lgd.backbones.timm_features import TimmFeatures, require_model

timm = pytest.importorskip("timm")
MAPS = ("stage3", "stage4")


def make(name="resnet18", **options):
    settings = {"out_features": MAPS, "norm": "FrozenBN", "freeze_at": 2} | options
    return TimmFeatures(name, **settings)


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050", "regnetx_002"])
@pytest.mark.parametrize("freeze_at", [0, 2])
def test_maps_are_timms_and_what_trains_has_a_gradient(name, freeze_at):
    backbone = make(name, freeze_at=freeze_at, norm="BN").eval()
    x = torch.randn(1, 3, 65, 96)
    maps = backbone(x)
    assert {each: m.shape for each, m in maps.items()} == {
        each: (1, backbone.channels[each], -(-65 // stride), -(-96 // stride))
        for each, stride in {"stage3": 8, "stage4": 16}.items()
    }
    theirs = {x.shape[1:]: x for x in backbone.body(x)}
    assert all(torch.equal(theirs[m.shape[1:]], m) for m in maps.values())
    sum(m.square().mean() for m in maps.values()).backward()
    trains = {each: p.requires_grad for each, p in backbone.named_parameters()}
    assert {each for each, p in backbone.named_parameters() if p.grad is not None} == {
        each for each in trains if trains[each]
    }
    assert (next(iter(trains.values()))) == (freeze_at == 0)


def test_frozen_norms_keep_what_they_have():
    backbone = make(norm="FrozenBN", freeze_at=0).train()
    before = {name: each.clone() for name, each in backbone.named_buffers()}
    backbone(torch.randn(2, 3, 64, 64))
    assert before
    assert all(torch.equal(each, before[name]) for name, each in backbone.named_buffers())
    assert not any(isinstance(each, nn.BatchNorm2d) for each in backbone.modules())


def test_norms_of_frozen_stages_are_frozen_and_others_train():
    backbone = make("mobilenetv3_small_050", norm="BN", freeze_at=2)
    kinds = {
        name: isinstance(each, nn.BatchNorm2d) for name, each in backbone.named_modules() if "bn" in name
    }
    assert not kinds["body.bn1"]
    assert kinds["body.blocks.2.0.bn1"]


@pytest.mark.parametrize("name", ["resnet18", "regnetx_002"])  # norms alone, and norms with what follows them
def test_frozen_norms_compute_what_norms_compute_in_evaluation(name):
    trained, frozen = make(name, norm="BN", freeze_at=0), make(name, norm="FrozenBN")
    trained.train()(torch.randn(4, 3, 64, 64))
    missing = frozen.load_state_dict(trained.state_dict(), strict=False)
    assert not missing.missing_keys
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(frozen.train()(x), trained.eval()(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet8", {}, "timm has no model 'resnet8'; did you mean resnet18"),
        ("resnet18", {"out_features": ["res3"]}, r"no maps \['res3'\]; choose some of \['stage1', "),
        ("resnet18", {"norm": "GN"}, "choose FrozenBN, BN or SyncBN, not 'GN'"),
        pytest.param(
            "vgg11_bn",
            {"freeze_at": 2},
            "where the stages of timm's vgg11_bn end is not known; set FREEZE_AT 0",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_errors(name, options, message):
    with pytest.raises(ValueError, match=message):
        make(name, **options)


def test_without_timm_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match=r"^timm is not installed; pip install 'lgd\[timm\]'$"):
        require_model("resnet18")
