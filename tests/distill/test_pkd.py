"""PKD against Pearson's correlation, channel by channel, and together with LGD."""

import math
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from lgd.distill.distiller import Adapter, LabelGuidedDistiller
from lgd.distill.pkd import LabelGuidedImitation, PearsonImitation, compare_features, pearson_loss
from lgd.distill.teacher import DynamicTeacher
from tests.detectors.small import make_batch, make_faster_rcnn, make_fcos, make_retinanet


def correlation(xs, ys):
    """Pearson's r of two lists of numbers, from its definition."""
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    product = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True))
    return product / math.sqrt(sum((x - mean_x) ** 2 for x in xs) * sum((y - mean_y) ** 2 for y in ys))


def slow_loss(features, taught, counted=None):
    """1 - r of every channel over all images and cells that count: mean over channels, sum over levels."""
    total = 0.0
    for level, ours in features.items():
        images, channels, height, width = ours.shape
        cells = [
            (image, y, x)
            for image in range(images)
            for y in range(height)
            for x in range(width)
            if counted is None or counted[level][y, x]
        ]
        for channel in range(channels):
            columns = (
                [part[level][i, channel, y, x].item() for i, y, x in cells] for part in (features, taught)
            )
            total += (1 - correlation(*columns)) / channels
    return total


def make_maps(seed):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"p3": (2, 3, 4, 5), "p4": (2, 3, 2, 3)}
    return {level: torch.randn(x, generator=generator, dtype=torch.float64) for level, x in shapes.items()}


def make_pkd(make_student=make_retinanet, make_teacher=make_retinanet, **kwargs):
    student, teacher = make_student(), make_teacher()
    torch.manual_seed(7)
    for parameter in teacher.neck.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return PearsonImitation(student=student, teacher=teacher, **kwargs).double()


def test_by_hand():
    ours = {"p3": torch.tensor([[[[1.0, 2.0, 3.0]]]], dtype=torch.float64)}
    for theirs, expected in (
        ([10.0, 20.0, 30.0], 0.0),  # another scale
        ([7.0, 8.0, 9.0], 0.0),  # another offset
        ([3.0, 2.0, 1.0], 2.0),
        ([1.0, 0.0, 1.0], 1.0),
        ([1.0, 3.0, 2.0], 0.5),
    ):
        taught = {"p3": torch.tensor([[[theirs]]], dtype=torch.float64)}
        assert pearson_loss(ours, taught).item() == pytest.approx(expected, abs=1e-12)


def test_against_a_loop():
    features, taught = make_maps(1), make_maps(2)
    assert pearson_loss(features, taught).item() == pytest.approx(slow_loss(features, taught), rel=1e-12)
    counted = {
        "p3": torch.arange(4)[:, None] * torch.ones(5) < 3,
        "p4": torch.arange(3) < torch.full((2, 1), 2),
    }
    wild = {level: torch.where(counted[level], x, 1e6) for level, x in features.items()}
    loss = pearson_loss(wild, taught, counted).item()
    assert loss == pytest.approx(slow_loss(features, taught, counted), rel=1e-12)


def test_it_is_half_the_squared_difference_of_standardised_maps():
    features, taught = make_maps(1), make_maps(2)
    expected = 0.0
    for level, x in features.items():
        ours, theirs = (
            (m - m.mean((0, 2, 3), keepdim=True)) / m.std((0, 2, 3), correction=0, keepdim=True)
            for m in (x, taught[level])
        )
        expected += float((ours - theirs).square().mean() / 2)
    assert pearson_loss(features, taught).item() == pytest.approx(expected, rel=1e-12)


def test_gradient():
    features = {level: x.requires_grad_() for level, x in make_maps(1).items()}
    taught, names = make_maps(2), list(features)
    assert torch.autograd.gradcheck(
        lambda *maps: pearson_loss(dict(zip(names, maps, strict=True)), taught), list(features.values())
    )


def test_channels_that_are_the_same_all_over_and_maps_of_one_cell_are_finite():
    features = {"p3": torch.ones(2, 3, 2, 2), "p7": torch.randn(1, 3, 1, 1)}
    taught = {"p3": torch.randn(2, 3, 2, 2), "p7": torch.randn(1, 3, 1, 1)}
    features = {level: x.requires_grad_() for level, x in features.items()}
    loss = pearson_loss(features, taught)
    loss.backward()
    assert loss.item() == pytest.approx(0.5)
    assert all(x.grad.isfinite().all() for x in features.values())
    same = {level: x.detach() for level, x in features.items()}
    assert pearson_loss(same, same).item() == pytest.approx(0)


def test_half_precision_is_summed_in_single():
    features, taught = ({k: 100 + x.bfloat16() for k, x in make_maps(seed).items()} for seed in (1, 2))
    exact = pearson_loss(*({k: x.double() for k, x in part.items()} for part in (features, taught)))
    assert pearson_loss(features, taught).item() == pytest.approx(exact.item(), rel=1e-5)


@pytest.mark.parametrize("num_objects", [[2, 1], [0, 0]])
def test_the_teacher_stays_as_it_is_and_the_student_learns(num_objects):
    model = make_pkd().train()
    assert not model.teacher.training
    assert model.student.training
    losses = model(make_batch(num_objects), distill=True)
    assert list(losses) == ["loss_cls", "loss_box_reg", "loss_distill"]
    losses["loss_distill"].backward()
    assert all(p.grad is None and not p.requires_grad for p in model.teacher.parameters())
    assert model.student.neck.fpn_output3.weight.grad.abs().sum() > 0
    assert {name.split(".")[0] for name, _ in model.named_parameters()} == {"student", "teacher"}


def test_the_loss_of_a_model_against_a_loop():
    model, batch = make_pkd(weight=3.0), make_batch([2, 1])
    features, taught = (x.extract_features(batch) for x in (model.student, model.teacher))
    loss = model(batch, distill=True, weight_factor=0.5)["loss_distill"]
    assert loss.item() == pytest.approx(1.5 * slow_loss(features, taught), rel=1e-9)


def test_without_distillation_nothing_learns_from_the_same_loss():
    model, batch = make_pkd().train(), make_batch([2, 1])
    on, off = (model(batch, distill=distill)["loss_distill"] for distill in (True, False))
    assert_close(on, off)
    assert not off.requires_grad


@pytest.mark.parametrize("make_student", [make_retinanet, make_fcos])
def test_a_two_stage_teacher_is_compared_at_the_strides_that_both_have(make_student):
    model, batch = make_pkd(make_student, make_faster_rcnn), make_batch([2, 1])
    assert model.levels == {"p3": "p3", "p4": "p4", "p5": "p5", "p6": "p6"}  # of p2 .. p6 and p3 .. p7
    features, taught = (x.extract_features(batch) for x in (model.student, model.teacher))
    expected = slow_loss({level: features[level] for level in model.levels}, taught)
    assert model(batch, distill=True)["loss_distill"].item() == pytest.approx(6 * expected, rel=1e-9)


def test_a_two_stage_student_of_a_one_stage_teacher():
    model = make_pkd(make_faster_rcnn, make_retinanet).train()
    assert model(make_batch([2, 1]), distill=True)["loss_distill"] > 0


def test_maps_of_another_size_are_resized_to_the_teachers():
    model, batch = make_pkd(), make_batch([2, 1])
    taught = model.teacher.extract_features(batch)
    larger = {
        level: torch.randn(2, 16, x.shape[-2] + 2, x.shape[-1] + 1, dtype=torch.float64)
        for level, x in taught.items()
    }
    found = compare_features(larger, model.teacher, model.levels, batch, distill=True)
    resized = {
        level: torch.nn.functional.interpolate(x, taught[level].shape[-2:], mode="bilinear")
        for level, x in larger.items()
    }
    assert found.item() == pytest.approx(slow_loss(resized, taught), rel=1e-9)


def test_larger_canvases_change_nothing():
    """The padding of one canvas for all batches does not count."""
    model, batch = make_pkd().eval(), make_batch([2, 1])
    features = model.student.extract_features(batch)
    taught = model.teacher.extract_features(batch)
    counted = {level: torch.ones_like(x[0, 0], dtype=torch.bool) for level, x in features.items()}
    for cells, stride in zip(counted.values(), model.student.strides.values(), strict=True):
        cells[-(-40 // stride) :] = False
    smaller = replace(batch, canvas=torch.tensor([40, 96]))
    found = compare_features(features, model.teacher, model.levels, smaller, distill=True)
    assert found.item() == pytest.approx(slow_loss(features, taught, counted), rel=1e-9)


def test_pairs_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="the teacher's features have 32 channels, the student's 16"):
        PearsonImitation(student=make_retinanet(), teacher=make_retinanet(channels=32))
    teacher = make_retinanet()
    teacher.strides = {"p0": 1}
    with pytest.raises(ValueError, match="none of the same stride"):
        PearsonImitation(student=make_retinanet(), teacher=teacher)


def make_both():
    """LGD alone and with PKD, of the same weights."""
    kinds = []
    for make in (LabelGuidedDistiller, LabelGuidedImitation):
        student = make_retinanet()
        torch.manual_seed(1)
        parts = {
            "student": student,
            "teacher": DynamicTeacher(channels=16, num_classes=3),
            "adapter": Adapter(16),
        }
        if make is LabelGuidedImitation:
            parts["pretrained"] = make_pkd(make_teacher=make_fcos).teacher
        kinds.append(make(**parts).double().train())
    return kinds


def test_with_lgd_both_losses_are_those_of_each_alone():
    alone, both = make_both()
    batch = make_batch([2, 1])
    pkd = PearsonImitation(student=both.student, teacher=both.pretrained)
    expected = alone(batch, distill=True)
    normalizer = both.student.loss_normalizer.clone()
    expected_of_pkd = pkd(batch, distill=True)["loss_distill"]
    both.student.loss_normalizer.copy_(normalizer)
    losses = both(batch, distill=True)
    assert list(losses) == [*expected, "loss_pkd"]
    for name, loss in expected.items():
        assert_close(losses[name], loss)
    assert_close(losses["loss_pkd"], expected_of_pkd)


@pytest.mark.parametrize("distill", [True, False])
def test_with_lgd_all_but_the_pretrained_detector_learns(distill):
    _, both = make_both()
    assert not both.pretrained.training
    sum(both(make_batch([2, 1]), distill=distill).values()).backward()
    missing = {
        name.split(".")[0] for name, p in both.named_parameters() if p.grad is None and p.requires_grad
    }
    assert not missing
    assert all(p.grad is None for p in both.pretrained.parameters())
