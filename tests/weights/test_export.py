import pytest
import torch

from lgd.detectors.retinanet import RetinaNet
from lgd.distill.distiller import Adapter, LabelGuidedDistiller
from lgd.distill.teacher import DynamicTeacher
from lgd.layers.fpn import FPN, TopBlockP6P7
from lgd.weights import WeightsError, load_weights, read_checkpoint_file, write_reference_checkpoint
from tests.weights.modules import small_resnet

PIXELS = {"pixel_mean": (103.53, 116.28, 123.675), "pixel_std": (1.0, 1.0, 1.0)}


def make_distiller(seed: int) -> LabelGuidedDistiller:
    torch.manual_seed(seed)
    backbone = small_resnet()
    neck = FPN(
        in_channels=backbone.channels,
        in_strides=backbone.strides,
        out_channels=8,
        top_block=TopBlockP6P7(backbone.channels["res5"], 8, "res5"),
    )
    student = RetinaNet(
        backbone=backbone,
        neck=neck,
        num_classes=3,
        anchor_sizes=[[32.0], [64.0], [128.0], [256.0], [512.0]],
        aspect_ratios=[[0.5, 1.0, 2.0]],
        **PIXELS,
    )
    teacher = DynamicTeacher(channels=8, num_classes=3, add_context_box=True)
    return LabelGuidedDistiller(student=student, teacher=teacher, adapter=Adapter(8))


def test_the_reference_does_not_embed_classes(tmp_path):
    model = make_distiller(1)
    model.teacher = DynamicTeacher(channels=8, num_classes=3, category_format="embedding")
    with pytest.raises(WeightsError, match="CATEGORY_FORMAT embedding; write the student alone"):
        write_reference_checkpoint(tmp_path / "model.pth", model, **PIXELS)
    assert not list(tmp_path.iterdir())


def test_a_written_checkpoint_loads_into_another_model_bit_by_bit(tmp_path):
    model, other = make_distiller(1), make_distiller(2)
    path = tmp_path / "model_final.pth"
    write_reference_checkpoint(path, model, **PIXELS)
    official = read_checkpoint_file(path)
    assert official.kind == "reference"
    assert official.tensors["student.anchor_generator.cell_anchors.4"].shape == (3, 4)
    assert "student.fpn.top_block.p7.bias" in official.tensors
    report = load_weights(other, path, stride_in_1x1=True, image_format="BGR", **PIXELS)
    assert report.kept == ("student.loss_normalizer",)
    assert not list(tmp_path.glob("*.tmp"))
    filled = other.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(filled[name], tensor), name
