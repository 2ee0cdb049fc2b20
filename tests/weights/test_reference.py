import json
from pathlib import Path

import pytest
import torch

from lgd.weights.reference import (
    find_cell_anchors,
    from_detectron2_model,
    from_reference,
    reference_constants,
    reference_name,
    to_reference,
)
from lgd.weights.report import WeightsError
from tests.weights.modules import randomise

CASE = Path(__file__).parents[1] / "parity" / "cases" / "a_retinanet_r50.json"
ANCHORS = {
    f"student.anchor_generator.cell_anchors.{level}": torch.tensor([[-16.0, -16.0, 16.0, 16.0]]) * 2**level
    for level in range(5)
}
CONSTANTS = reference_constants(
    pixel_mean=[103.53, 116.28, 123.675], pixel_std=[1.0, 1.0, 1.0], cell_anchors=ANCHORS
)


@pytest.fixture(scope="module")
def official():
    """A checkpoint with every official name, each tensor shrunk to 2 elements per axis."""
    entries = json.loads(CASE.read_text())["state_dict"]
    tensors = {e["name"]: torch.zeros([min(n, 2) for n in e["shape"]]) for e in entries}
    tensors = randomise(tensors) | CONSTANTS
    for e in entries:
        if "alias_of" in e:
            tensors[e["name"]] = tensors[e["alias_of"]]
    return tensors


def test_round_trip_is_bit_equal_with_every_official_name(official):
    ours = from_reference(official, CONSTANTS)
    back = to_reference(ours | {"student.loss_normalizer": torch.tensor(99.0)}, CONSTANTS)
    assert back.keys() == official.keys()
    for name, tensor in official.items():
        assert back[name].shape == tensor.shape, name
        assert torch.equal(back[name], tensor), name


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (
            "student.raw_backbone.res4.5.conv3.norm.running_var",
            "student.backbone.res4.5.conv3.norm.running_var",
        ),
        ("student.backbone.fpn_lateral3.bias", "student.neck.fpn_lateral3.bias"),
        ("student.backbone.top_block.p6.weight", "student.neck.top_block.p6.weight"),
        ("student.head.cls_subnet.6.weight", "student.head.cls_subnet.6.weight"),
        ("teacher.label_encoder_.stn_feat.fc3.bias", "teacher.label_encoder.stn_feat.fc3.bias"),
        ("teacher.label_encoder_.conv4.weight", "teacher.label_encoder.conv4.weight"),
        ("teacher.canoni_proj_1D.0.0.weight", "teacher.label_projection.weight"),
        ("teacher.student_proj_2D.0.0.weight", "teacher.student_projection.weight"),
        ("teacher.local_inst_proj_1D.bias", "teacher.instance_projection.bias"),
        ("teacher.local_inst_proj_2D.bias", "teacher.instance_conv.bias"),
        ("teacher.global_ctx_proj_1D.weight", "teacher.context_projection.weight"),
        ("teacher.refinement_module.6.bias", "teacher.refinement.6.bias"),
        ("teacher.multi_head_attn.out_proj.weight", "teacher.attention.out_proj.weight"),
        ("adapter.distill.adapter.4.weight", "adapter.4.weight"),
    ],
)
def test_names_by_hand(official, theirs, ours):
    assert reference_name(ours) == theirs
    assert torch.equal(from_reference(official)[ours].flatten(), official[theirs].flatten())


def test_the_label_encoders_convolutions_become_linear(official):
    ours = from_reference(official)
    for name, ndim in (("conv1", 2), ("stn_desc.conv3", 2), ("stn_desc.fc1", 2)):
        assert ours[f"teacher.label_encoder.{name}.weight"].ndim == ndim
    assert ours["teacher.instance_conv.weight"].ndim == 4


def test_aliases_must_repeat_what_they_name(official):
    name = "student.fpn.fpn_output4.weight"
    with pytest.raises(WeightsError, match=rf"1 tensor of student\.fpn\.\* unlike .*{name}"):
        from_reference(official | {name: official[name] + 1})
    without = {name: tensor for name, tensor in official.items() if not name.startswith("student.fpn.")}
    assert from_reference(without).keys() == from_reference(official).keys()


def test_constants_are_held_against_the_configs(official):
    with pytest.raises(
        WeightsError, match=r"student\.pixel_std is \[1\.0, 1\.0, 1\.0\] in the weights and \[57"
    ):
        from_reference(
            official,
            reference_constants(pixel_mean=[103.53, 116.28, 123.675], pixel_std=[57.375, 57.12, 58.395]),
        )
    name = "student.anchor_generator.cell_anchors.3"
    wider = CONSTANTS | {name: ANCHORS[name] * 1.5}
    with pytest.raises(WeightsError, match=r"cell_anchors\.3 is .*MODEL\.ANCHOR_GENERATOR"):
        from_reference(official, wider)


def test_a_detector_of_detectron2_is_the_references_student(official):
    plain = {
        name.removeprefix("student.").replace("raw_backbone.", "backbone.bottom_up."): tensor
        for name, tensor in official.items()
        if name.startswith("student.") and not name.startswith("student.fpn.")
    }
    assert "backbone.bottom_up.res2.0.conv1.weight" in plain
    assert "backbone.fpn_lateral3.weight" in plain
    expected = {k: v for k, v in from_reference(official).items() if k.startswith("student.")}
    found = from_detectron2_model(plain, CONSTANTS)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_anchors_go_by_the_names_of_dense_and_of_two_stage_detectors():
    cells = torch.zeros(2, 3, 4)
    model, part = torch.nn.Module(), torch.nn.Module()
    part.register_buffer("cell_anchors", cells, persistent=False)
    model.student = part
    assert list(find_cell_anchors(model)) == [f"student.anchor_generator.cell_anchors.{i}" for i in (0, 1)]
    model.student = torch.nn.Module()
    model.student.proposal_generator = part
    names = [f"student.proposal_generator.anchor_generator.cell_anchors.{i}" for i in (0, 1)]
    assert list(find_cell_anchors(model)) == names
