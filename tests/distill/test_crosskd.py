"""CrossKD against its definition, position by position, and through the layers of the heads."""

import math

import pytest
import torch
from torch.testing import assert_close

from lgd.detectors.protocol import DenseDetector, DensePredictions
from lgd.distill.crosskd import CrossHeadImitation, cross_head_losses
from tests.detectors.small import (
    make_atss,
    make_batch,
    make_faster_rcnn,
    make_fcos,
    make_poto,
    make_retinanet,
)

DENSE = {"retinanet": make_retinanet, "fcos": make_fcos, "atss": make_atss, "poto": make_poto}


def excited(detector, seed):
    """Weights that tell one position from another, and scores that are detections."""
    detector.score_thresh_test = 0.0
    torch.manual_seed(seed)
    for parameter in (*detector.neck.parameters(), *detector.head.parameters()):
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    return detector


def make_model(make_student=make_retinanet, make_teacher=None, num_convs=2, **kwargs):
    student = excited(make_student(num_convs=num_convs), 1)
    teacher = excited((make_teacher or make_student)(num_convs=num_convs), 2)
    return CrossHeadImitation(student=student, teacher=teacher, **kwargs).double()


def slow_focal(logit, score):
    """|y - p|^2 times the cross entropy of p to y."""
    p = 1 / (1 + math.exp(-logit))
    return (score - p) ** 2 * -(score * math.log(p) + (1 - score) * math.log(1 - p))


def slow_giou_loss(a, b):
    def area(box):
        return max(box[2] - box[0], 0) * max(box[3] - box[1], 0)

    overlap = area([max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])])
    union = area(a) + area(b) - overlap
    hull = area([min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])])
    return 1 - overlap / union + (hull - union) / hull


def test_losses_by_hand():
    crossed = DensePredictions(
        torch.tensor([[[0.0], [2.0], [-1.0]]], dtype=torch.float64),
        torch.tensor([[[0, 0, 4, 4], [0, 0, 2, 2], [1, 1, 3, 3]]], dtype=torch.float64),
    )
    said = DensePredictions(
        torch.tensor([[[1.0], [2.0], [3.0]]], dtype=torch.float64),
        torch.tensor([[[2, 0, 6, 4], [0, 0, 2, 2], [5, 5, 9, 9]]], dtype=torch.float64),
    )
    foreground = torch.tensor([[True, True, False]])
    of_classes, of_boxes = cross_head_losses(crossed, said, foreground)
    scores = [1 / (1 + math.exp(-x)) for x in (1.0, 2.0, 3.0)]
    expected = sum(slow_focal(x, y) for x, y in zip((0.0, 2.0, -1.0), scores, strict=True)) / 2
    assert of_classes.item() == pytest.approx(expected, rel=1e-12)
    # Boxes of 16 that share 8 of a hull of 24: IoU 1 / 3; the second is the same; the third does not count.
    assert of_boxes.item() == pytest.approx((1 - 1 / 3) / 2, rel=1e-6)
    nowhere = cross_head_losses(crossed, said, torch.zeros_like(foreground))
    assert nowhere[0].item() == pytest.approx(2 * expected)
    assert nowhere[1] == 0


@pytest.mark.parametrize("name", DENSE)
def test_losses_of_a_model_against_a_loop(name):
    model, batch = make_model(DENSE[name], class_weight=2.0, box_weight=3.0).eval(), make_batch([2, 1])
    student, teacher = model.student, model.teacher
    losses = model(batch, distill=True, weight_factor=0.5)
    features = student.extract_features(batch)
    own, assignment = student.compute_losses(features, batch)
    assert {key: losses[key] for key in own} == own
    crossed = teacher.finish_head(student.begin_head(features, 1), 1)
    said = teacher.finish_head(teacher.begin_head(teacher.extract_features(batch), 0), 0)
    foreground = assignment.labels.flatten().tolist()
    places = [place for place, label in enumerate(foreground) if 0 <= label < 3]
    assert places
    of_classes = sum(
        slow_focal(x, y)
        for x, y in zip(
            crossed.logits.flatten().tolist(), said.logits.sigmoid().flatten().tolist(), strict=True
        )
    )
    boxes = [x.boxes.flatten(0, 1).tolist() for x in (crossed, said)]
    of_boxes = sum(slow_giou_loss(boxes[0][place], boxes[1][place]) for place in places)
    assert losses["loss_distill"].item() == pytest.approx(of_classes / len(places), rel=1e-9)
    assert losses["loss_distill_box"].item() == pytest.approx(1.5 * of_boxes / len(places), rel=1e-5)


@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize("layer", [0, 1, 2])
@torch.no_grad()
def test_a_head_cut_anywhere_says_what_the_whole_one_says(name, layer):
    detector = excited(DENSE[name](num_convs=2), 1).double().eval()
    assert isinstance(detector, DenseDetector)
    assert detector.num_head_convs == 2
    batch = make_batch([1, 1])
    features = detector.extract_features(batch)
    cut = detector.finish_head(detector.begin_head(features, layer), layer)
    if name == "retinanet":
        logits, _ = detector._predict(features)
        assert_close(cut.logits, torch.cat(logits, dim=1), rtol=0, atol=0)
    else:
        (whole,) = detector._predict_joined([features])
        assert_close(cut.logits, whole.logits, rtol=0, atol=0)
    cells = sum(x.shape[-2] * x.shape[-1] for x in features.values())
    assert cut.boxes.shape == (2, cells * detector.positions_per_cell, 4)
    found = detector.detect(features, batch)
    for image, boxes in enumerate(cut.boxes):
        assert len(found[image].boxes)
        limits = batch.sizes[image].flip(0).repeat(2).double()
        known = 2 * torch.minimum(boxes.clamp(min=0), limits)  # the originals are twice as large
        assert (
            torch.cdist(found[image].boxes, known, compute_mode="donot_use_mm_for_euclid_dist")
            .amin(dim=1)
            .max()
            < 1e-6
        )


def test_the_gradient_goes_through_the_teachers_layers_into_the_students():
    model, batch = make_model(layer=1).train(), make_batch([2, 1])
    losses = model(batch, distill=True)
    (losses["loss_distill"] + losses["loss_distill_box"]).backward()
    assert all(p.grad is None for p in model.teacher.parameters())
    learns = {name for name, p in model.student.named_parameters() if p.grad is not None}
    head = {name for name in learns if name.startswith("head.")}
    assert {name.rsplit(".", 1)[0] for name in head} == {"head.cls_subnet.0", "head.bbox_subnet.0"}
    assert any(name.startswith("backbone.") for name in learns)


def test_without_distillation_nothing_learns_from_the_same_losses():
    model, batch = make_model().train(), make_batch([2, 1])
    on, off = (model(batch, distill=distill) for distill in (True, False))
    for name in ("loss_distill", "loss_distill_box"):
        assert_close(on[name], off[name])
        assert not off[name].requires_grad


def test_detectors_of_other_kinds_and_depths_of_head():
    student, teacher = make_fcos(num_convs=1), make_atss(num_convs=3)
    model = CrossHeadImitation(student=student, teacher=teacher, layer=1).double().train()
    losses = model(make_batch([2, 1]), distill=True)
    assert all(losses[name].isfinite() for name in ("loss_distill", "loss_distill_box"))
    assert make_model(num_convs=4).layer == 3


def test_pairs_that_do_not_fit_are_refused():
    def refuse(student, teacher, **kwargs):
        with pytest.raises(ValueError, match=r".") as caught:
            CrossHeadImitation(student=student, teacher=teacher, **kwargs)
        return str(caught.value)

    assert "the student (RCNN) has no dense head" in refuse(make_faster_rcnn(), make_retinanet())
    assert "the teacher (RCNN) has no dense head" in refuse(make_retinanet(), make_faster_rcnn())
    assert "channels of the teacher: 32, of the student: 16" in refuse(make_fcos(), make_fcos(channels=32))
    assert "classes of the teacher: 5, of the student: 3" in refuse(make_fcos(), make_fcos(num_classes=5))
    assert "anchors of a cell of the teacher: 6, of the student: 1" in refuse(make_fcos(), make_retinanet())
    assert "layer 2 is not within both heads, which have 1" in refuse(make_fcos(), make_fcos(), layer=2)
