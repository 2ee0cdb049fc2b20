"""Fine-grained feature imitation against its definition, loop by loop."""

import pytest
import torch

from lgd.distill.fgfi import FeatureImitation, imitation_loss, near_anchors
from lgd.ops.boxes import box_iou
from lgd.structures import Targets
from tests.detectors.small import ANCHOR_SIZES, make_batch, make_retinanet

RATIOS = [[0.5, 1.0, 2.0]]


def make_model(**kwargs):
    model = FeatureImitation(
        student=make_retinanet(),
        teacher=make_retinanet(channels=32),
        anchor_sizes=ANCHOR_SIZES,
        aspect_ratios=RATIOS,
        **kwargs,
    )
    return model.double()


def test_near_anchors_against_a_loop():
    targets = make_batch([3, 0, 1]).targets
    corners = torch.rand(200, 2, dtype=torch.float64) * 60
    anchors = torch.cat([corners, corners + 5 + 20 * torch.rand(200, 2, dtype=torch.float64)], dim=1)
    expected = torch.zeros(3, 200, dtype=torch.bool)
    for b in range(3):
        for box in targets.boxes[b][targets.valid[b]]:
            overlaps = [float(box_iou(box[None], anchor[None])) for anchor in anchors]
            for a, overlap in enumerate(overlaps):
                expected[b, a] |= overlap > 0.5 * max(overlaps)
    assert torch.equal(near_anchors(anchors, targets, 0.5), expected)
    assert expected[0].any()
    assert not expected[1].any()


def test_an_object_marks_cells_around_it():
    model = make_model()
    boxes = torch.tensor([[[32.0, 16.0, 64.0, 48.0]]], dtype=torch.float64)
    targets = Targets(boxes, torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1, dtype=torch.bool))
    features = {
        level: torch.zeros(1, 16, 64 // s, 96 // s) for level, s in list(model.student.strides.items())[:3]
    }
    features |= {"p6": torch.zeros(1, 16, 1, 2), "p7": torch.zeros(1, 16, 1, 1)}
    cells = model.near_objects(features, targets)
    assert {level: x.shape for level, x in cells.items()} == {
        level: (1, *x.shape[-2:]) for level, x in features.items()
    }
    assert cells["p3"][0, 4, 6]  # pixel (32, 48), the object's centre
    assert not cells["p3"][0, 0, 0]


def test_loss_of_hand_made_features():
    adapted = {"p3": torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]]]), "p4": torch.tensor([[[[5.0]], [[6.0]]]])}
    taught = {"p3": torch.zeros(1, 2, 1, 2), "p4": torch.ones(1, 2, 1, 1)}
    cells = {"p3": torch.tensor([[[True, False]]]), "p4": torch.tensor([[[True]]])}
    assert imitation_loss(adapted, taught, cells) == (1 + 9 + 16 + 25) / (2 * 2)
    nowhere = {level: torch.zeros_like(mask) for level, mask in cells.items()}
    assert imitation_loss(adapted, taught, nowhere) == 0


def test_the_teacher_stays_as_it_is_and_the_student_learns():
    model = make_model(weight=1.0).train()
    assert not model.teacher.training
    assert model.student.training
    losses = model(make_batch([2, 1]), distill=True)
    losses["loss_distill"].backward()
    assert all(p.grad is None for p in model.teacher.parameters())
    assert model.student.neck.fpn_output3.weight.grad.abs().sum() > 0
    assert model.adapter.weight.grad.abs().sum() > 0


def test_without_distillation_only_the_adapter_learns():
    model = make_model(weight=1.0).train()
    batch = make_batch([2, 1])
    on, off = (model(batch, distill=distill)["loss_distill"] for distill in (True, False))
    assert on == off
    off.backward()
    assert model.adapter.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in model.student.parameters())


def test_teachers_of_other_levels_are_refused():
    teacher = make_retinanet()
    teacher.strides = {"p3": 8}
    with pytest.raises(ValueError, match="the teacher has the levels"):
        FeatureImitation(
            student=make_retinanet(), teacher=teacher, anchor_sizes=ANCHOR_SIZES, aspect_ratios=RATIOS
        )
    with pytest.raises(ValueError, match="anchor_sizes has 2 rows for 5 levels"):
        FeatureImitation(
            student=make_retinanet(),
            teacher=make_retinanet(),
            anchor_sizes=ANCHOR_SIZES[:2],
            aspect_ratios=RATIOS,
        )
