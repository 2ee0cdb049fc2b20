import pytest
import torch
import torchvision

from lgd.backbones.swin import SwinTransformer
from lgd.weights import load_weights
from lgd.weights.kind import BACKBONE
from lgd.weights.reference import to_detectron2, to_reference
from lgd.weights.report import WeightsError
from lgd.weights.swin import adapt_patch_embedding, swin_from_microsoft, swin_from_torchvision
from tests.weights.modules import module_of, randomise, student_with

BGR_MEAN, RGB_MEAN = (103.53, 116.28, 123.675), (123.675, 116.28, 103.53)
RGB_STD = (58.395, 57.12, 57.375)
REFERENCE_INPUT = {
    "stride_in_1x1": True,
    "pixel_mean": BGR_MEAN,
    "pixel_std": (1.0, 1.0, 1.0),
    "image_format": "BGR",
}
TRAINED_INPUT = {**REFERENCE_INPUT, "pixel_mean": RGB_MEAN, "pixel_std": RGB_STD, "image_format": "RGB"}


def small_swin(**settings) -> SwinTransformer:
    torch.manual_seed(0)
    model = SwinTransformer(embed_dim=24, num_heads=(1, 2, 4, 8), drop_path_rate=0.0, **settings)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.1 + (".norm" in name and "weight" in name))
    return model.eval()


def microsoft_file(model: SwinTransformer) -> dict[str, torch.Tensor]:
    """What the classifier's checkpoint holds: no norms of the stages, but masks, indices and a head."""
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("norm")}
    state |= {
        f"layers.{stage}.blocks.{block}.attn.relative_position_index": torch.zeros(49, 49, dtype=torch.int64)
        for stage, depth in enumerate((2, 2, 6, 2))
        for block in range(depth)
    }
    state |= {"layers.0.blocks.1.attn_mask": torch.zeros(64, 49, 49), "head.weight": torch.zeros(1000, 192)}
    return state | {
        "head.bias": torch.zeros(1000),
        "norm.weight": torch.ones(192),
        "norm.bias": torch.ones(192),
    }


def test_torchvision_weights_give_torchvisions_features():
    theirs = torchvision.models.swin_t().eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    ours = SwinTransformer(out_features=("stage2", "stage3", "stage4")).eval()
    renamed, dropped = swin_from_torchvision(theirs.state_dict())
    tensors = {name.removeprefix(BACKBONE): tensor for name, tensor in renamed.items()}
    result = ours.load_state_dict(tensors, strict=False)
    assert all(name.startswith("norm") for name in result.missing_keys)
    assert all(name.startswith(("layers.3", "layers.2.downsample")) for name in result.unexpected_keys)
    assert {"head.weight", "norm.bias", "features.1.0.attn.relative_position_index"} < set(dropped)
    # 232 x 264 gives maps that no window divides: 58 x 66, 29 x 33 (odd, so the merge pads) and 15 x 17.
    images = torch.randn(1, 3, 232, 264)
    with torch.no_grad():
        maps = ours(images)
        for index, (stage, last) in enumerate((("stage2", 1), ("stage3", 3), ("stage4", 5))):
            expected = ours.get_submodule(f"norm{index}")(theirs.features[: last + 1](images))
            torch.testing.assert_close(maps[stage], expected.permute(0, 3, 1, 2), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prefix", ["", "backbone.bottom_up."])
@pytest.mark.parametrize("stages", [("stage2", "stage3", "stage4", "stage5"), ("stage3", "stage4", "stage5")])
def test_microsofts_checkpoint_fills_the_backbone(tmp_path, prefix, stages):
    source, model = (
        small_swin(),
        student_with(SwinTransformer(embed_dim=24, num_heads=(1, 2, 4, 8), out_features=stages)),
    )
    path = tmp_path / "swin_tiny_patch4_window7_224.pth"
    torch.save({"model": {prefix + name: t for name, t in microsoft_file(source).items()}}, path)
    report = load_weights(model, path, **TRAINED_INPUT)
    assert report.note is None
    norms = [name for name in report.kept if name.startswith("student.backbone.")]
    assert sorted(norms) == sorted(n for n in model.state_dict() if n.startswith("student.backbone.norm"))
    filled = model.state_dict()
    for name, tensor in source.state_dict().items():
        if not name.startswith("norm"):
            assert torch.equal(filled[BACKBONE + name], tensor), name
    assert "layers.0.blocks.1.attn_mask" in report.dropped
    assert "Swin transformer" in report.summary()


def test_microsofts_names_that_no_swin_has():
    with pytest.raises(
        WeightsError, match=r"1 name that a Swin does not have: layers\.0\.blocks\.0\.attn\.cpb_mlp\.0"
    ):
        swin_from_microsoft(
            {"patch_embed.proj.weight": torch.ones(1), "layers.0.blocks.0.attn.cpb_mlp.0": torch.ones(1)}
        )


def test_torchvisions_second_version_is_refused_by_its_names():
    names = ("features.0.0.weight", "features.1.0.attn.logit_scale", "features.1.0.attn.cpb_mlp.0.weight")
    with pytest.raises(WeightsError, match="2 names that a Swin does not have: features"):
        swin_from_torchvision({name: torch.ones(1) for name in names})


def test_another_width_is_named(tmp_path):
    path = tmp_path / "swin.pth"
    torch.save({"model": microsoft_file(small_swin())}, path)
    with pytest.raises(
        WeightsError, match=r"swin\.pth: .*of another shape: student\.backbone\.layers.* and \d+ more"
    ):
        load_weights(
            student_with(SwinTransformer(embed_dim=12, num_heads=(1, 2, 4, 8))), path, **TRAINED_INPUT
        )


def test_the_references_input_gives_the_features_of_the_trained_one(tmp_path):
    path = tmp_path / "swin.pth"
    torch.save({"model": microsoft_file(small_swin())}, path)
    models, maps = [], []
    rgb = torch.rand(1, 3, 64, 96) * 255
    for settings in (TRAINED_INPUT, REFERENCE_INPUT):
        torch.manual_seed(1)
        model = student_with(SwinTransformer(embed_dim=24, num_heads=(1, 2, 4, 8), drop_path_rate=0.0)).eval()
        report = load_weights(model, path, **settings)
        images = rgb if settings["image_format"] == "RGB" else rgb.flip(1)
        mean, std = (torch.tensor(settings[key])[:, None, None] for key in ("pixel_mean", "pixel_std"))
        with torch.no_grad():
            maps.append(model.student.backbone((images - mean) / std))
        models.append(model)
    assert report.note == "patch embedding fitted to BGR input with the config's mean and std"
    assert report.note in report.summary()
    for name, expected in maps[0].items():
        torch.testing.assert_close(maps[1][name], expected, rtol=1e-4, atol=2e-4)
    trained, fitted = (model.student.backbone.patch_embed.proj.weight for model in models)
    torch.testing.assert_close(fitted, trained.flip(1), rtol=0.02, atol=0)


def test_patch_embedding_by_hand():
    weight = torch.tensor([1.0, 2.0, 3.0]).reshape(1, 3, 1, 1)
    tensors = {
        "student.backbone.patch_embed.proj.weight": weight,
        "student.backbone.patch_embed.proj.bias": torch.tensor([5.0]),
        "student.backbone.layers.0.x": torch.ones(1),
    }
    adapted = adapt_patch_embedding(
        tensors,
        trained_mean=(10.0, 20.0, 30.0),
        trained_std=(2.0, 2.0, 4.0),
        pixel_mean=(30.0, 20.0, 12.0),
        pixel_std=(1.0, 1.0, 1.0),
        swap_channels=True,
    )
    # stds now over then, in the config's order: 1/4, 1/2, 1/2, whose mean is 5/12
    ratio = torch.tensor([0.25, 0.5, 0.5]) * 12 / 5
    expected = torch.tensor([3.0, 2.0, 1.0]) * ratio
    torch.testing.assert_close(adapted["student.backbone.patch_embed.proj.weight"].flatten(), expected)
    torch.testing.assert_close(
        adapted["student.backbone.patch_embed.proj.bias"],
        torch.tensor([(5.0 + 1.0 * (12 - 10) / 2) * 12 / 5]),
    )
    assert adapted["student.backbone.layers.0.x"] is tensors["student.backbone.layers.0.x"]


def test_other_backbones_are_not_fitted(tmp_path):
    state = randomise({"student.backbone.stem.conv1.weight": torch.zeros(2, 3)})
    path = tmp_path / "model.pth"
    torch.save({"format": "lgd", "model": state}, path)
    assert load_weights(module_of(state), path, **REFERENCE_INPUT).note is None


@pytest.mark.parametrize(
    ("export", "root"), [(to_reference, "student.raw_backbone."), (to_detectron2, "backbone.bottom_up.")]
)
def test_exports_hold_torchvisions_position_index(export, root):
    state = {BACKBONE + name: tensor for name, tensor in small_swin().state_dict().items()}
    exported = export(state, {})
    theirs = torchvision.models.swin_t().state_dict()["features.1.0.attn.relative_position_index"]
    assert torch.equal(exported[root + "layers.2.blocks.5.attn.relative_position_index"].flatten(), theirs)
    indices = [name for name in exported if name.endswith("relative_position_index")]
    assert len(indices) == 12
