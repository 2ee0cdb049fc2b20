"""How the teacher's losses meet the head: by hand on small numbers, and on every kind of detector."""

import pytest
import torch

from lgd.distill.distiller import Adapter, LabelGuidedDistiller
from lgd.distill.head import SlowHead, head_parameters, losses_through, shared_by
from lgd.distill.teacher import DynamicTeacher
from tests.detectors.small import DETECTORS, make_batch, make_retinanet

KINDS = ["retinanet", "poto", "faster_rcnn"]


def make_distiller(kind, **kwargs):
    student = DETECTORS[kind]()
    teacher = DynamicTeacher(channels=16, num_classes=3)
    return LabelGuidedDistiller(student=student, teacher=teacher, adapter=Adapter(16), **kwargs).double()


def take_step(distiller, batch, part, **phase):
    """All losses, and the gradients of those of the "teacher" or the "student"."""
    torch.manual_seed(0)
    if hasattr(distiller.student, "loss_normalizer"):
        distiller.student.loss_normalizer.fill_(100.0)
    losses = distiller(batch, distill=False, **phase)
    del losses["loss_distill"]
    parameters = [p for p in distiller.parameters() if p.requires_grad]
    chosen = sum(loss for name, loss in losses.items() if name.endswith(".tea") == (part == "teacher"))
    gradients = torch.autograd.grad(chosen, parameters, allow_unused=True)
    names = [name for name, p in distiller.named_parameters() if p.requires_grad]
    return losses, {name: g for name, g in zip(names, gradients, strict=True) if g is not None}


@pytest.mark.parametrize("head_once", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_share_of_the_teachers_gradient_reaches_the_head(kind, head_once):
    distiller, batch = make_distiller(kind, head_once=head_once), make_batch([2, 1])
    head = {f"student.{name}" for name in head_parameters(distiller.student)}
    expected, whole = take_step(distiller, batch, "teacher")
    assert head <= whole.keys()
    for share in (0.0, 0.25):
        losses, gradients = take_step(distiller, batch, "teacher", head_share=share)
        torch.testing.assert_close(losses, expected, rtol=1e-12, atol=0)
        assert gradients.keys() == (whole.keys() - head if share == 0 else whole.keys())
        for name, gradient in gradients.items():
            factor = share if name in head else 1.0
            torch.testing.assert_close(gradient, whole[name] * factor, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_the_students_losses_train_the_head_as_ever(share):
    distiller, batch = make_distiller("retinanet"), make_batch([2, 1])
    _, expected = take_step(distiller, batch, "student")
    _, found = take_step(distiller, batch, "student", head_share=share)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())


def test_a_share_by_hand():
    weight = torch.tensor([2.0, 3.0], requires_grad=True)
    (taken,) = shared_by({"weight": weight}, 0.25).values()
    assert torch.equal(taken, weight)
    (taken * torch.tensor([4.0, 8.0])).sum().backward()
    assert weight.grad.tolist() == [1.0, 2.0]
    assert not shared_by({"weight": weight}, 0)["weight"].requires_grad


def test_a_slow_head_by_hand():
    slow, weight = SlowHead(0.75), torch.zeros(2, dtype=torch.float64)
    seen = []
    for step, value in enumerate([8.0, 4.0, 0.0, 4.0, 12.0]):
        weight.fill_(value)
        slow.follow({"weight": weight}, step)
        seen.append(slow.weights["weight"][0].item())
    # The mean of one, two, three and four heads; then three quarters of that and a quarter of the fifth.
    assert seen == pytest.approx([8.0, 6.0, 4.0, 4.0, 6.0], abs=1e-12)
    assert slow.weights["weight"].data_ptr() != weight.data_ptr()


@pytest.mark.parametrize("kind", KINDS)
def test_the_teacher_goes_through_the_slow_head(kind):
    distiller, batch = make_distiller(kind, slow_head=SlowHead(0.5), head_once=True), make_batch([2, 1])
    _, fixed = take_step(distiller, batch, "teacher")  # before the first step it is the head itself
    head = head_parameters(distiller.student)
    assert not fixed.keys() & {f"student.{name}" for name in head}
    distiller.begin_step(0)
    before = {name: p.detach().clone() for name, p in head.items()}
    with torch.no_grad():
        for parameter in head.values():
            parameter += 0.01
    distiller.begin_step(1)
    expected = {name: x + 0.005 for name, x in before.items()}
    torch.testing.assert_close(distiller.slow_head.weights, expected)
    losses, gradients = take_step(distiller, batch, "teacher")
    assert gradients.keys() == fixed.keys()
    with torch.no_grad():
        for name, parameter in head.items():
            parameter.copy_(expected[name])
    if kind == "retinanet":  # which draws nothing, and assigns by its anchors
        there, _ = take_step(distiller, batch, "student")
        for name in ("loss_cls.tea", "loss_box_reg.tea"):
            torch.testing.assert_close(losses[name], there[name], rtol=1e-9, atol=0)


def test_buffers_move_on_under_other_weights():
    detector, batch = make_retinanet().double(), make_batch([2, 1])
    features = detector.extract_features(batch)
    weights = shared_by(head_parameters(detector), 0)
    before, own = detector.loss_normalizer.item(), detector.head.cls_score.weight
    losses = losses_through(detector, weights, features, batch, None)
    assert set(losses) == {"loss_cls", "loss_box_reg"}
    assert detector.loss_normalizer.item() != before
    assert detector.head.cls_score.weight is own
