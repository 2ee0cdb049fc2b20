"""Files as others publish them, by their true names: detectron2's zoo, torchvision, the reference."""

import json
import pickle
from pathlib import Path

import pytest
import torch
import torchvision

from lgd.build.weights import fill_model
from lgd.weights import WeightsError, load_weights, read_checkpoint_file, reference_constants
from lgd.weights.reference import PATTERN_DEPENDENT, find_cell_anchors, to_detectron2, to_reference
from tests.training import REPOSITORY
from tests.weights.modules import small_resnet, student_with
from tests.weights.test_round_trip import make

CASES = REPOSITORY / "tests" / "parity" / "cases"
REFERENCE_NAMES = {
    "a_retinanet_r50": "retinanet/r50_2x_ms_lgd.yaml",
    "b_faster_r50": "faster_rcnn/r50_2x_ms_lgd.yaml",
    "c_fcos_r50": "fcos/r50_2x_ms_lgd.yaml",
    "d_mask_swin_t": "mask_rcnn/swin_t_3x_ms_lgd.yaml",
    "f_retinanet_r101_dcn": "retinanet/r101_dcn_2x_ms_lgd.yaml",
}
RGB = {
    "stride_in_1x1": False,
    "image_format": "RGB",
    "pixel_mean": (123.675, 116.28, 103.53),
    "pixel_std": (58.395, 57.12, 57.375),
}


@pytest.mark.parametrize("case", REFERENCE_NAMES)
def test_our_export_has_the_references_names(case):
    entries = json.loads((CASES / f"{case}.json").read_text())["state_dict"]
    _, model = make(REFERENCE_NAMES[case], seed=1)
    anchors = find_cell_anchors(model)
    pixels = {"pixel_mean": (1.0, 1.0, 1.0), "pixel_std": (1.0, 1.0, 1.0)}
    constants = reference_constants(**pixels, cell_anchors=anchors) if anchors else {}
    exported = to_reference(model.state_dict(), constants)
    ours = {(name, tensor.ndim) for name, tensor in exported.items()}
    theirs = {(entry["name"], len(entry["shape"])) for entry in entries}
    assert ours <= theirs
    unused = {"teacher.global_ctx_proj_1D.weight", "teacher.global_ctx_proj_1D.bias"}
    assert {name for name, _ in theirs - ours} <= unused
    assert "teacher.context_projection." in PATTERN_DEPENDENT


def as_zoo_pickle(path: Path, model, cfg) -> Path:
    """A detector as detectron2's zoo publishes it: numpy arrays by its names, in a pickle of protocol 2."""
    constants = reference_constants(
        pixel_mean=cfg.model.pixel_mean, pixel_std=cfg.model.pixel_std, cell_anchors=find_cell_anchors(model)
    )
    tensors = to_detectron2(model.state_dict(), constants)
    content = {
        "model": {name: tensor.numpy() for name, tensor in tensors.items()},
        "__author__": "Detectron2 Model Zoo",
    }
    path.write_bytes(pickle.dumps(content, protocol=2))
    return path


@pytest.mark.parametrize(
    ("recipe", "names"),
    [
        ("retinanet/r50_2x_ms_lgd.yaml", ["head.cls_subnet.6.bias", "anchor_generator.cell_anchors.4"]),
        (
            "faster_rcnn/r50_1x_ms_lgd.yaml",
            ["proposal_generator.rpn_head.anchor_deltas.bias", "roi_heads.box_predictor.bbox_pred.weight"],
        ),
        (
            "mask_rcnn/r50_1x_ms_lgd.yaml",
            ["roi_heads.mask_head.mask_fcn4.bias", "proposal_generator.anchor_generator.cell_anchors.0"],
        ),
    ],
)
def test_a_zoo_detector_starts_a_distiller(tmp_path, recipe, names):
    cfg, source = make(recipe, seed=1)
    path = as_zoo_pickle(tmp_path / "model_final_f10217.pkl", source, cfg)
    weights = read_checkpoint_file(path)
    assert weights.kind == "detectron2-model"
    common = ["backbone.bottom_up.stem.conv1.norm.running_var", "backbone.fpn_lateral3.weight", "pixel_mean"]
    assert {*names, *common} <= set(weights.tensors)
    _, model = make(recipe, seed=2)
    fresh = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = fill_model(cfg, model, str(path))
    given = source.state_dict()
    for name, tensor in model.state_dict().items():
        loaded = name.startswith("student.") and name != "student.loss_normalizer"
        assert torch.equal(tensor, given[name] if loaded else fresh[name]), name
    assert {"teacher", "adapter"} <= {name.split(".")[0] for name in report.kept}
    assert "kept as initialised: " in report.summary()
    assert "adapter (6)" in report.summary()


def test_a_zoo_detector_of_other_classes_says_what_to_do(tmp_path):
    cfg, source = make("faster_rcnn/r50_1x_ms_lgd.yaml", seed=1, NUM_CLASSES=5)
    path = as_zoo_pickle(tmp_path / "model.pkl", source, cfg)
    cfg, model = make("faster_rcnn/r50_1x_ms_lgd.yaml", seed=2)
    with pytest.raises(
        WeightsError, match=r"2 layers .*box_predictor\.bbox_pred.*MODEL\.WEIGHTS_IGNORE_CLASSES"
    ):
        fill_model(cfg, model, str(path))
    cfg, model = make("faster_rcnn/r50_1x_ms_lgd.yaml", seed=2, MODEL__WEIGHTS_IGNORE_CLASSES=True)
    report = fill_model(cfg, model, str(path))
    assert {name.split(".")[-2] for name in report.dropped} == {"cls_score", "bbox_pred"}
    expected = source.state_dict()["student.roi_heads.box_head.fc1.weight"]
    assert torch.equal(model.state_dict()["student.roi_heads.box_head.fc1.weight"], expected)


def test_a_detector_of_another_input_is_refused(tmp_path):
    cfg, source = make("retinanet/r50_2x_ms_lgd.yaml", seed=1, MODEL__PIXEL_STD="(57.375, 57.12, 58.395)")
    path = as_zoo_pickle(tmp_path / "model.pkl", source, cfg)
    cfg, model = make("retinanet/r50_2x_ms_lgd.yaml", seed=2)
    with pytest.raises(
        WeightsError, match=r"pixel_std is \[57\.375, .* set MODEL\.PIXEL_MEAN, MODEL\.PIXEL_STD"
    ):
        fill_model(cfg, model, str(path))


def test_a_mask_detector_does_not_pass_for_a_box_detector(tmp_path):
    cfg, source = make("mask_rcnn/r50_1x_ms_lgd.yaml", seed=1)
    path = as_zoo_pickle(tmp_path / "model.pkl", source, cfg)
    cfg, model = make("faster_rcnn/r50_1x_ms_lgd.yaml", seed=2)
    with pytest.raises(WeightsError, match=r"12 unexpected: student\.roi_heads\.mask_head\.deconv\.bias, "):
        fill_model(cfg, model, str(path))


def test_torchvisions_resnext_fills_ours_with_groups(tmp_path):
    theirs = torchvision.models.ResNet(
        torchvision.models.resnet.Bottleneck, [3, 4, 6, 3], groups=32, width_per_group=4
    )
    path = tmp_path / "resnext50_32x4d.pth"
    torch.save(theirs.state_dict(), path)
    settings = {"stem_out_channels": 64, "res2_out_channels": 256, "stride_in_1x1": False}
    model = student_with(small_resnet(num_groups=32, width_per_group=4, **settings))
    report = load_weights(model, path, **RGB)
    conv = model.student.backbone.res4[0].conv2.weight
    assert conv.shape == (512, 16, 3, 3)
    assert torch.equal(conv, theirs.layer3[0].conv2.weight)
    assert {"fc.weight", "bn1.num_batches_tracked"} <= set(report.dropped)
    with pytest.raises(WeightsError, match="of another shape: student"):
        load_weights(student_with(small_resnet(**settings)), path, **RGB)
