import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.swin_transformer import SwinTransformer as TorchvisionSwin

from lgd.backbones.swin import PatchMerging, SwinBlock, SwinTransformer

DEPTHS, HEADS = (2, 2, 2, 2), (1, 2, 4, 8)


def make_small(**kwargs):
    return SwinTransformer(**{"embed_dim": 16, "depths": DEPTHS, "num_heads": HEADS, **kwargs})


def torchvision_names(state):
    """Our names for torchvision's Swin weights."""
    names = {}
    for name, tensor in state.items():
        _, index, rest = name.split(".", 2) if name.startswith("features") else ("", "", "")
        rest = rest.replace("mlp.0", "mlp.fc1").replace("mlp.3", "mlp.fc2")
        if index == "0":
            names[f"patch_embed.{rest.replace('0.', 'proj.').replace('2.', 'norm.')}"] = tensor
        elif index and not rest.endswith("relative_position_index"):
            kind = "downsample" if int(index) % 2 == 0 else "blocks"
            names[f"layers.{(int(index) - 1) // 2}.{kind}.{rest}"] = tensor
    return names


@pytest.mark.parametrize("size", [(448, 448), (260, 300)], ids=str)
def test_like_torchvision(size):
    torch.manual_seed(0)
    theirs = TorchvisionSwin([4, 4], 16, DEPTHS, HEADS, [7, 7], norm_layer=nn.LayerNorm).double().eval()
    for name, parameter in theirs.named_parameters():
        if "bias" in name or "norm" in name:
            nn.init.normal_(parameter, mean=float("norm" in name), std=0.3)
    ours = make_small().double().eval()
    missing, unexpected = ours.load_state_dict(torchvision_names(theirs.state_dict()), strict=False)
    assert not unexpected
    assert set(missing) == {f"norm{i}.{kind}" for i in range(4) for kind in ("weight", "bias")}
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    maps = ours(x)
    expected = theirs.features[0](x)
    for stage in range(4):
        expected = theirs.features[2 * stage + 1](expected)
        normalized = F.layer_norm(expected, expected.shape[-1:]).permute(0, 3, 1, 2)
        assert torch.allclose(maps[f"stage{stage + 2}"], normalized, rtol=1e-9, atol=1e-9)
        if stage < 3:
            expected = theirs.features[2 * stage + 2](expected)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((33, 33), [(9, 9), (5, 5), (3, 3), (2, 2)]),
        ((64, 130), [(16, 33), (8, 17), (4, 9), (2, 5)]),
        ((1, 32), [(1, 8), (1, 4), (1, 2), (1, 1)]),
    ],
)
def test_states_its_maps(size, expected):
    net = make_small()
    assert net.channels == {"stage2": 16, "stage3": 32, "stage4": 64, "stage5": 128}
    assert net.strides == {"stage2": 4, "stage3": 8, "stage4": 16, "stage5": 32}
    maps = net(torch.randn(2, 3, *size))
    assert [(name, x.shape[:2], x.shape[2:]) for name, x in maps.items()] == [
        (name, (2, channels), cells)
        for (name, channels), cells in zip(net.channels.items(), expected, strict=True)
    ]
    assert all(x.isfinite().all() for x in maps.values())


def test_swin_t_has_the_published_size():
    with torch.device("meta"):
        num_parameters = sum(parameter.numel() for parameter in SwinTransformer().parameters())
    final_norm, classifier, norms = 2 * 768, 768 * 1000 + 1000, 2 * (96 + 192 + 384 + 768)
    assert num_parameters == 28_288_354 - final_norm - classifier + norms


def test_every_map_is_normalized():
    torch.manual_seed(0)
    for x in make_small()(torch.randn(1, 3, 64, 64)).values():
        assert x.mean(dim=1).abs().max() < 1e-4
        assert torch.allclose(x.square().mean(dim=1), torch.ones_like(x[:, 0]), atol=0.05)


def test_builds_nothing_that_nothing_reads():
    names = make_small(out_features=["stage4", "stage3"]).state_dict().keys()
    assert {name.split(".")[0] for name in names} == {"patch_embed", "layers", "norm1", "norm2"}
    assert {name.split(".")[1] for name in names if name.startswith("layers")} == {"0", "1", "2"}
    assert not any(name.startswith("layers.2.downsample") for name in names)
    assert not any(name.endswith("relative_position_index") for name in names)


def test_merging_takes_columns_after_rows_and_pads_with_zeros():
    merging = PatchMerging(1)
    merging.norm = nn.Identity()
    merging.reduction = nn.Identity()
    x = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])[None, :, :, None]
    assert merging(x)[0].tolist() == [[[1, 4, 2, 5], [3, 6, 0, 0]]]


@pytest.mark.parametrize("absolute_positions", [False, True])
def test_gradients_reach_every_parameter(absolute_positions):
    net = make_small(absolute_positions=absolute_positions, drop_path_rate=0.0)
    sum((x * torch.randn_like(x)).sum() for x in net(torch.randn(1, 3, 70, 90)).values()).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


def test_absolute_positions_are_resized_to_the_map():
    torch.manual_seed(0)
    plain, moved = (
        make_small(out_features=["stage2"]),
        make_small(out_features=["stage2"], absolute_positions=True),
    )
    moved.load_state_dict(plain.state_dict(), strict=False)
    assert moved.absolute_pos_embed.shape == (1, 16, 56, 56)
    nn.init.constant_(moved.absolute_pos_embed, 2.0)
    plain.patch_embed.norm.bias.data += 2.0
    x = torch.randn(1, 3, 60, 100)
    assert torch.allclose(plain(x)["stage2"], moved(x)["stage2"], atol=1e-5)


@pytest.mark.parametrize(
    ("freeze_at", "frozen"),
    [
        (-1, ()),
        (0, ("patch_embed.",)),
        (1, ("patch_embed.", "absolute_pos_embed")),
        (3, ("patch_embed.", "absolute_pos_embed", "layers.0.", "layers.1.")),
    ],
)
def test_freeze_at(freeze_at, frozen):
    net = make_small(freeze_at=freeze_at, absolute_positions=True, drop_path_rate=0.7)
    for name, parameter in net.named_parameters():
        assert parameter.requires_grad != name.startswith(frozen or ("-",)), name
    rates = [block.drop_path.p for stage in net.layers for block in stage.blocks]
    num_frozen = 2 * sum(name.startswith("layers") for name in frozen)
    assert rates == pytest.approx([0.0] * num_frozen + [0.1 * i for i in range(num_frozen, 8)])


def test_stochastic_depth_drops_whole_branches_of_single_images():
    torch.manual_seed(0)
    block = SwinBlock(4, num_heads=1, window_size=2, shift=0, mlp_ratio=1.0, drop_path=0.25)
    nn.init.zeros_(block.mlp.fc2.weight)
    nn.init.zeros_(block.mlp.fc2.bias)
    x = torch.randn(1, 2, 2, 4).expand(4000, -1, -1, -1)
    mask = torch.zeros(1, 4, 4)
    branch = block.eval()(x, mask)[0] - x[0]
    out = block.train()(x, mask) - x
    is_dropped = (out == 0).flatten(1).all(1)
    assert torch.allclose(out[~is_dropped], branch / 0.75, atol=1e-5)
    # 1000 of 4000 expected, with a deviation of 27.
    assert abs(is_dropped.sum() - 1000) < 120


def test_stochastic_depth_follows_the_global_seed_and_is_off_in_evaluation():
    net, x = make_small(drop_path_rate=0.5), torch.randn(4, 3, 64, 64)

    def run():
        torch.manual_seed(3)
        return net(x)["stage5"]

    first = run()
    assert torch.equal(first, run())
    assert not torch.equal(first, net(x)["stage5"])
    net.eval()
    assert torch.equal(net(x)["stage5"], net(x)["stage5"])


def test_bfloat16():
    torch.manual_seed(0)
    net, x = make_small(drop_path_rate=0.0), torch.randn(1, 3, 100, 70)
    expected = net(x)
    with torch.autocast("cpu", torch.bfloat16):
        autocast = net(x)
    whole = net.bfloat16()(x.bfloat16())
    for maps in (autocast, whole):
        for name, y in maps.items():
            assert (y - expected[name]).abs().mean() < 0.05, name


def test_initialization():
    torch.manual_seed(0)
    net = SwinTransformer(out_features=["stage4"])
    attention = net.layers[2].blocks[0].attn
    for tensor in (attention.qkv.weight, net.layers[0].downsample.reduction.weight):
        assert tensor.std().item() == pytest.approx(0.02, rel=0.02)
    assert attention.relative_position_bias_table.std().item() == pytest.approx(0.02, rel=0.1)
    assert not attention.qkv.bias.any()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (
            {"out_features": ["stage6"]},
            r"no maps \['stage6'\]; choose some of \['stage2', 'stage3', 'stage4', 'sta",
        ),
        ({"out_features": []}, r"no maps \[\]; choose some"),
        ({"num_heads": (1, 2)}, r"4 depths of a Swin transformer need as many heads, not \(1, 2\)"),
        ({"num_heads": (1, 3, 4, 8)}, "3 heads don't divide the 32 channels of a Swin transformer's stage"),
    ],
)
def test_errors(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make_small(**kwargs)
