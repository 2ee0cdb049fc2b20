import pytest
import torch
from torch import nn

from lgd.layers.group_norm import GroupNorm
from lgd.layers.norm import FrozenBatchNorm2d, SeparateFrozenBatchNorm2d, freeze, make_norm


def randomized(norm, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in norm.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + (0.5 if "var" in name else 0))
    return norm


def test_frozen_norm_is_batch_norm_in_evaluation():
    frozen = randomized(FrozenBatchNorm2d(6)).double()
    norm = nn.BatchNorm2d(6).double().eval()
    norm.load_state_dict(frozen.state_dict(), strict=False)
    x = torch.randn(2, 6, 3, 4, dtype=torch.float64)
    assert torch.allclose(frozen.train()(x), norm(x), atol=1e-12)


@pytest.mark.parametrize("requires_grad", [False, True])
def test_separate_frozen_norm_is_the_frozen_norm(requires_grad):
    frozen = randomized(FrozenBatchNorm2d(6)).double()
    separate = SeparateFrozenBatchNorm2d(6).double()
    separate.load_state_dict(frozen.state_dict())
    x = torch.randn(2, 6, 3, 4, dtype=torch.float64, requires_grad=requires_grad)
    assert torch.allclose(separate(x), frozen(x), rtol=1e-12, atol=1e-12)
    assert list(separate.parameters()) == []


def test_fresh_frozen_norm_is_the_identity_and_has_only_buffers():
    frozen = FrozenBatchNorm2d(3)
    x = torch.randn(1, 3, 2, 2)
    assert torch.allclose(frozen(x), x, atol=1e-6)
    assert list(frozen.parameters()) == []
    assert list(frozen.state_dict()) == ["weight", "bias", "running_mean", "running_var"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("FrozenBN", FrozenBatchNorm2d),
        ("SeparateFrozenBN", SeparateFrozenBatchNorm2d),
        ("BN", nn.BatchNorm2d),
        ("SyncBN", nn.SyncBatchNorm),
        ("GN", GroupNorm),
    ],
)
def test_names(name, kind):
    assert type(make_norm(name, 64)) is kind


def test_no_name_no_norm():
    assert make_norm("", 64) is None


def test_unknown_name():
    with pytest.raises(ValueError, match=r"unknown norm 'bn'; choose 'FrozenBN', 'BN', 'SyncBN', 'GN' or ''"):
        make_norm("bn", 64)


@pytest.mark.parametrize(("channels", "num_groups"), [(256, 32), (64, 32), (32, 4), (16, 2), (4, 1)])
def test_group_norm_has_no_groups_of_one(channels, num_groups):
    assert make_norm("GN", channels).num_groups == num_groups


def test_group_norm_needs_groups():
    with pytest.raises(ValueError, match="GN of 80 channels does not divide into 32 groups; choose FrozenBN"):
        make_norm("GN", 80)


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, nn.SyncBatchNorm])
def test_freeze(kind):
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(randomized(kind(4))))
    expected = nn.BatchNorm2d(4).eval()
    expected.load_state_dict(module[1][0].state_dict())
    freeze(module)
    assert not any(parameter.requires_grad for parameter in module.parameters())
    assert isinstance(module[1][0], FrozenBatchNorm2d)
    x = torch.randn(2, 4, 3, 3)
    assert torch.allclose(module.train()[1](x), expected(x), atol=1e-6)


def test_freeze_leaves_group_norm_a_group_norm():
    module = nn.Sequential(nn.GroupNorm(2, 4))
    freeze(module)
    assert isinstance(module[0], nn.GroupNorm)
    assert not module[0].weight.requires_grad
