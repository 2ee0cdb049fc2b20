import pytest
import torch
import torch.nn.functional as F

from lgd.layers.fpn import FPN, TopBlockMaxPool, TopBlockP6P7

CHANNELS = {"res3": 6, "res4": 8, "res5": 10}
STRIDES = {"res3": 8, "res4": 16, "res5": 32}


def make_maps(height=8, width=12):
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(2, CHANNELS[name], height // 2**i, width // 2**i, generator=generator)
        for i, name in enumerate(CHANNELS)
    }


def make_fpn(**kwargs):
    return FPN(in_channels=CHANNELS, in_strides=STRIDES, out_channels=4, **kwargs)


def test_by_hand():
    fpn, maps = make_fpn(), make_maps()
    levels = fpn(maps)
    merged5 = fpn.fpn_lateral5(maps["res5"])
    merged4 = fpn.fpn_lateral4(maps["res4"]) + merged5.repeat_interleave(2, 2).repeat_interleave(2, 3)
    merged3 = fpn.fpn_lateral3(maps["res3"]) + merged4.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert list(levels) == ["p3", "p4", "p5"]
    assert torch.equal(levels["p5"], fpn.fpn_output5(merged5))
    assert torch.equal(levels["p4"], fpn.fpn_output4(merged4))
    assert torch.equal(levels["p3"], fpn.fpn_output3(merged3))


@pytest.mark.parametrize(("source", "in_channels"), [("res5", 10), ("p5", 4)])
def test_top_block(source, in_channels):
    fpn, maps = make_fpn(top_block=TopBlockP6P7(in_channels, 4, source)), make_maps(24, 40)
    levels = fpn(maps)
    p6 = fpn.top_block.p6(maps["res5"] if source == "res5" else levels["p5"])
    assert torch.equal(levels["p6"], p6)
    assert torch.equal(levels["p7"], fpn.top_block.p7(F.relu(p6)))
    assert fpn.strides == {"p3": 8, "p4": 16, "p5": 32, "p6": 64, "p7": 128}
    assert list(levels) == list(fpn.strides)
    assert [tuple(x.shape[1:]) for x in levels.values()] == [
        (4, 24, 40),
        (4, 12, 20),
        (4, 6, 10),
        (4, 3, 5),
        (4, 2, 3),
    ]


def test_one_top_level_by_convolution():
    fpn = make_fpn(top_block=TopBlockP6P7(4, 4, "p5", num_levels=1))
    levels = fpn(make_maps())
    assert list(levels) == list(fpn.strides) == ["p3", "p4", "p5", "p6"]
    assert torch.equal(levels["p6"], fpn.top_block.p6(levels["p5"]))
    assert not any("p7" in name for name in fpn.state_dict())


def test_max_pooled_top_level_is_every_second_cell():
    fpn = make_fpn(top_block=TopBlockMaxPool("p5"))
    levels = fpn({name: x[..., :-1] for name, x in make_maps(24, 48).items()})
    assert fpn.strides == {"p3": 8, "p4": 16, "p5": 32, "p6": 64}
    assert levels["p5"].shape[-2:] == (6, 11)
    assert torch.equal(levels["p6"], levels["p5"][..., ::2, ::2])


def test_average_of_levels():
    fpn, maps = make_fpn(fuse_type="avg"), make_maps()
    above = fpn.fpn_lateral5(maps["res5"]).repeat_interleave(2, 2).repeat_interleave(2, 3)
    merged = (fpn.fpn_lateral4(maps["res4"]) + above) / 2
    assert torch.equal(fpn(maps)["p4"], fpn.fpn_output4(merged))


def test_norm_takes_the_bias_away():
    names = set(make_fpn(norm="BN").state_dict())
    assert {"fpn_lateral3.weight", "fpn_lateral3.norm.weight"} <= names
    assert "fpn_lateral3.bias" not in names


def test_odd_sizes_of_a_canvas_that_32_does_not_divide():
    maps = {
        "res3": torch.randn(1, 6, 7, 9),
        "res4": torch.randn(1, 8, 4, 5),
        "res5": torch.randn(1, 10, 2, 3),
    }
    assert [x.shape[-2:] for x in make_fpn()(maps).values()] == [(7, 9), (4, 5), (2, 3)]


def test_strides_must_double():
    with pytest.raises(ValueError, match=r"strides double, not \[8, 32\] of \['res3', 'res5'\]"):
        FPN(in_channels={"res3": 6, "res5": 10}, in_strides=STRIDES, out_channels=4)


def test_unknown_fuse_type():
    with pytest.raises(ValueError, match="by 'sum' or 'avg', not 'max'"):
        make_fpn(fuse_type="max")


def test_number_of_top_levels():
    with pytest.raises(ValueError, match="add 1 or 2 levels on top, not 3"):
        TopBlockP6P7(4, 4, "p5", num_levels=3)


def test_gradients_of_a_single_cell_in_half_precision():
    """The taps that see only padding get zero, whatever the memory held before."""
    for _ in range(40):
        top_block = TopBlockP6P7(16, 16, "res5")
        leftovers = [torch.full((count,), float("nan"), dtype=torch.bfloat16) for count in (256, 2304, 4096)]
        del leftovers
        with torch.autocast("cpu", torch.bfloat16):
            p6, p7 = top_block(torch.randn(2, 16, 1, 1))
        (p6.float().sum() + p7.float().sum()).backward()
        for conv in (top_block.p6, top_block.p7):
            assert torch.isfinite(conv.weight.grad).all()
            assert (conv.weight.grad[:, :, 0] == 0).all()
