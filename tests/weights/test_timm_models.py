import pytest
import torch

from lgd.backbones.timm_features import TimmFeatures
from lgd.weights import WeightsError, fetch_weights, load_weights
from tests.weights.modules import student_with

timm = pytest.importorskip("timm")
INPUT = {
    "stride_in_1x1": True,
    "pixel_mean": (127.5, 127.5, 127.5),
    "pixel_std": (127.5, 127.5, 127.5),
    "image_format": "RGB",
}
NAME = "mobilenetv3_small_050"


@pytest.fixture
def downloads(monkeypatch, tmp_path):
    """What timm would download: weights of a seed, and a mean and deviation of 0.5. Lists the names."""
    names = []
    create = timm.create_model

    def create_model(name, *, pretrained, features_only):
        model = create(name, pretrained=False, features_only=features_only)
        if pretrained:
            names.append(name)
            model.pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
        return model

    monkeypatch.setattr(timm, "create_model", create_model)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return names


def backbone():
    return TimmFeatures(NAME, out_features=["stage3"], norm="FrozenBN", freeze_at=2)


def test_weights_are_fetched_once_and_fill_the_backbone(downloads):
    path = fetch_weights(f"timm://{NAME}")
    assert fetch_weights(f"timm://{NAME}") == path
    assert downloads == [NAME]
    model = student_with(backbone())
    report = load_weights(model, path, **INPUT)
    assert report.kind == "timm backbone"
    theirs = torch.load(path, weights_only=True)["model"]
    for name, tensor in model.student.backbone.body.state_dict().items():
        assert torch.equal(tensor, theirs[name]), name
    assert all(name.endswith("num_batches_tracked") for name in report.dropped)


def test_timms_own_input_is_asked_for(downloads):
    other = INPUT | {"image_format": "BGR", "pixel_std": (1.0, 1.0, 1.0)}
    message = r"set INPUT.FORMAT RGB, MODEL.PIXEL_STD \[127.5, 127.5, 127.5\]$"
    with pytest.raises(WeightsError, match=message):
        load_weights(student_with(backbone()), fetch_weights(f"timm://{NAME}"), **other)


@pytest.mark.parametrize("mean", [None, [0.5], ["a", "b", "c"]])
def test_a_file_that_names_no_input_is_refused(downloads, tmp_path, mean):
    path = tmp_path / "odd.pth"
    torch.save(
        {"model": {"conv.weight": torch.ones(1)}, "format": "timm", "mean": mean, "std": [1.0] * 3}, path
    )
    with pytest.raises(WeightsError, match="makes no sense"):
        load_weights(student_with(backbone()), path, **INPUT)


@pytest.mark.parametrize("name", ["no_such_model", "../../etc", ""])
def test_an_unknown_model_leaves_nothing_behind(downloads, tmp_path, name):
    with pytest.raises(WeightsError, match=f"^timm://{name}: timm has no model"):
        fetch_weights(f"timm://{name}")
    assert not list(tmp_path.iterdir())
