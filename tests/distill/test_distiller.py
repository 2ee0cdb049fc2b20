import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from lgd.distill.comparison import distillation_loss, divergence_loss
from lgd.distill.distiller import (
    Adapter,
    LabelGuidedDistiller,
    PlainStudent,
    canvas_cells,
)
from lgd.distill.teacher import DynamicTeacher
from tests.detectors.small import make_batch, make_retinanet


def make_distiller(weight=1.0, **kwargs):
    student = make_retinanet()
    teacher = DynamicTeacher(channels=16, num_classes=3, **kwargs)
    return LabelGuidedDistiller(student=student, teacher=teacher, adapter=Adapter(16), weight=weight).double()


def gradients(distiller, loss):
    distiller.zero_grad(set_to_none=True)
    loss.backward()
    return {name for name, p in distiller.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}


def test_losses_and_their_names():
    distiller, batch = make_distiller(), make_batch([2, 1])
    losses = distiller(batch, distill=True)
    assert list(losses) == ["loss_cls", "loss_box_reg", "loss_cls.tea", "loss_box_reg.tea", "loss_distill"]
    distiller.eval()
    distiller.student.loss_normalizer.fill_(100)
    losses = distiller(batch, distill=True)
    student = distiller.student
    features = student.extract_features(batch)
    expected, assignment = student.compute_losses(features, batch)
    taught = distiller.teach(features, batch)
    expected_of_teacher, _ = student.compute_losses(taught, batch, assignment)
    for name in ("loss_cls", "loss_box_reg"):
        assert torch.allclose(losses[name], expected[name], rtol=1e-12)
        assert torch.allclose(losses[f"{name}.tea"], expected_of_teacher[name], rtol=1e-12)


@pytest.mark.parametrize("context", [False, True])
@pytest.mark.parametrize("distill", [False, True])
@pytest.mark.parametrize("num_objects", [[2, 1], [0, 0]])
def test_every_parameter_gets_a_gradient(distill, context, num_objects):
    distiller = make_distiller(add_context_box=context)
    sum(distiller(make_batch(num_objects), distill=distill).values()).backward()
    assert [name for name, p in distiller.named_parameters() if p.requires_grad and p.grad is None] == []


def test_the_distillation_loss_teaches_student_and_adapter_only():
    distiller, batch = make_distiller(), make_batch([2, 1])
    touched = gradients(distiller, distiller(batch, distill=True)["loss_distill"])
    assert {name.split(".")[0] for name in touched} == {"student", "adapter"}
    assert {".".join(name.split(".")[:2]) for name in touched if name.startswith("student")} == {
        "student.backbone",
        "student.neck",
    }


def test_without_distillation_only_the_adapter_learns_from_the_same_loss():
    distiller, batch = make_distiller(), make_batch([2, 1])
    on, off = (distiller(batch, distill=distill)["loss_distill"] for distill in (True, False))
    assert torch.equal(on, off)
    assert {name.split(".")[0] for name in gradients(distiller, off)} == {"adapter"}


def test_teacher_losses_teach_teacher_and_student():
    distiller, batch = make_distiller(), make_batch([2, 1])
    losses = distiller(batch, distill=True)
    touched = gradients(distiller, losses["loss_cls.tea"] + losses["loss_box_reg.tea"])
    assert {name.split(".")[0] for name in touched} == {"student", "teacher"}
    assert any(name.startswith("student.backbone") for name in touched)


def test_detached_teacher_losses_stop_at_the_head():
    distiller, batch = make_distiller(detach_appearance_embed=True), make_batch([2, 1])
    losses = distiller(batch, distill=True)
    touched = gradients(distiller, losses["loss_cls.tea"] + losses["loss_box_reg.tea"])
    assert {".".join(n.split(".")[:2]) for n in touched if n.startswith("student")} == {"student.head"}


def test_weight():
    batch = make_batch([2, 1])
    torch.manual_seed(0)
    one = make_distiller()
    torch.manual_seed(0)
    three = make_distiller(weight=3.0)
    a, b = one(batch, distill=True)["loss_distill"], three(batch, distill=True)["loss_distill"]
    assert torch.allclose(3 * a, b)


def test_distillation_loss_like_instance_norm_of_torch():
    generator = torch.Generator().manual_seed(0)
    sizes = [(6, 5), (3, 2), (1, 2)]
    ours, theirs = (
        {
            f"p{i}": (
                torch.randn(2, 4, *size, generator=generator, dtype=torch.float64) * 3 + 1
            ).requires_grad_()
            for i, size in enumerate(sizes)
        }
        for _ in range(2)
    )
    flat = [
        torch.cat([F.instance_norm(x, eps=1e-5).flatten(1) for x in maps.values()], dim=1)
        for maps in (ours, theirs)
    ]
    loss = distillation_loss(ours, theirs)
    assert torch.allclose(loss, F.mse_loss(*flat), rtol=1e-12)
    loss.backward()
    assert all(x.grad is not None for x in ours.values())
    assert all(x.grad is None for x in theirs.values())


def test_a_level_of_one_cell_counts_as_equal():
    adapted = {"p3": torch.randn(1, 2, 2, 2), "p7": torch.randn(1, 2, 1, 1)}
    taught = {"p3": torch.randn(1, 2, 2, 2), "p7": torch.randn(1, 2, 1, 1)}
    alone = distillation_loss({"p3": adapted["p3"]}, {"p3": taught["p3"]})
    assert torch.allclose(distillation_loss(adapted, taught), alone * 8 / 10)


def test_distillation_loss_is_taken_in_single_precision():
    half = {"p3": torch.randn(1, 2, 4, 4).bfloat16()}
    loss = distillation_loss(half, {"p3": torch.randn(1, 2, 4, 4)})
    assert loss.dtype == torch.float32


def test_no_host_sync_in_training():
    """Tensors without data: asking one for a value raises."""
    distiller, batch = make_distiller(add_context_box=True), make_batch([2, 1])
    with FakeTensorMode(allow_non_fake_inputs=True):
        sum(distiller(batch, distill=True).values()).backward()


def test_half_precision_autocast():
    distiller, batch = make_distiller(add_context_box=True).float(), make_batch([2, 1], dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        losses = distiller(batch, distill=True)
    assert all(loss.dtype == torch.float32 and torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()


def test_plain_student():
    plain, batch = PlainStudent(make_retinanet().double()), make_batch([2, 1])
    losses = plain(batch, distill=True)
    distiller = make_distiller()
    expected = distiller(batch, distill=True)
    assert losses == {name: expected[name] for name in ("loss_cls", "loss_box_reg")}
    assert {name.split(".")[0] for name, _ in plain.named_parameters()} == {"student"}


def test_state_names():
    names = {name.split(".")[0] for name in make_distiller().state_dict()}
    assert names == {"student", "teacher", "adapter"}
    assert list(Adapter(4).state_dict()) == [f"{i}.{kind}" for i in (0, 2, 4) for kind in ("weight", "bias")]


def test_cells_of_a_canvas_are_those_it_has_by_itself():
    features = {"p3": torch.zeros(1, 1, 12, 16), "p6": torch.zeros(1, 1, 2, 2), "p7": torch.zeros(1, 1, 1, 1)}
    cells = canvas_cells(torch.tensor([64, 96]), features, {"p3": 8, "p6": 64, "p7": 128})
    assert {level: marks.sum(dim=0).amax().item() for level, marks in cells.items()} == {
        "p3": 8,
        "p6": 1,
        "p7": 1,
    }
    assert {level: marks.sum(dim=1).amax().item() for level, marks in cells.items()} == {
        "p3": 12,
        "p6": 2,
        "p7": 1,
    }


def test_cells_that_are_not_counted_change_no_loss_and_get_no_gradient():
    sizes = {"p3": (8, 12), "p4": (4, 6), "p6": (1, 2)}
    strides = {"p3": 8, "p4": 16, "p6": 64}
    padded = {level: (h + 4, w + 3) for level, (h, w) in sizes.items()}
    adapted = {x: torch.randn(2, 4, *hw, dtype=torch.float64, requires_grad=True) for x, hw in padded.items()}
    taught = {x: torch.randn(2, 4, *hw, dtype=torch.float64) for x, hw in padded.items()}
    loss = distillation_loss(adapted, taught, canvas_cells(torch.tensor([64, 96]), adapted, strides))
    tight = [{x: maps[x][..., : sizes[x][0], : sizes[x][1]] for x in maps} for maps in (adapted, taught)]
    expected = distillation_loss(*tight)
    assert torch.allclose(loss, expected, rtol=1e-12)
    found = torch.autograd.grad(loss, list(adapted.values()))
    wanted = torch.autograd.grad(expected, list(adapted.values()))
    assert all(torch.allclose(x, y, rtol=1e-9, atol=1e-15) for x, y in zip(found, wanted, strict=True))


def test_a_canvas_that_fills_the_images_changes_no_loss():
    distiller, batch = make_distiller(add_context_box=True).eval(), make_batch([2, 0])
    named = distiller(replace(batch, canvas=torch.tensor([64, 96])), distill=True)
    for name, loss in distiller(batch, distill=True).items():
        assert torch.allclose(named[name], loss, rtol=1e-12)


@pytest.mark.parametrize("share", [0.5, 0.6, 1.0])
@pytest.mark.parametrize("head_share", [0.0, 1.0])
def test_the_teacher_sees_a_share_of_the_images(share, head_share):
    """One of two or both, of three two; the student's losses are of all, and its normaliser moves once."""
    distiller, batch = make_distiller(), make_batch([2, 3, 1])
    student, number = distiller.student, {0.5: 2, 0.6: 2, 1.0: 3}[share]
    features = student.extract_features(batch)
    expected, assignment = student.compute_losses(features, batch)
    normalizer = student.loss_normalizer.clone()
    seen = {level: x[:number] for level, x in features.items()}
    taught = distiller.teach(seen, batch.first(number))
    of_teacher, _ = student.compute_losses(taught, batch.first(number), assignment.first(number))
    adapted = {level: distiller.adapter(x) for level, x in seen.items()}
    student.loss_normalizer.fill_(100)
    distiller.image_share = share
    losses = distiller(batch, distill=True, head_share=head_share)
    torch.testing.assert_close(student.loss_normalizer, normalizer)
    assert {name: loss for name, loss in losses.items() if name in expected} == expected
    for name, loss in of_teacher.items():
        torch.testing.assert_close(losses[f"{name}.tea"], loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(losses["loss_distill"], distillation_loss(adapted, taught), rtol=1e-12, atol=0)


def test_equal_images_teach_the_same_whether_the_teacher_sees_all_or_half():
    batch = make_batch([3]).map(lambda x: torch.cat([x, x]))
    found = []
    for share in (1.0, 0.5):
        torch.manual_seed(0)
        distiller = make_distiller()
        distiller.image_share = share
        losses = distiller(batch, distill=True)
        sum(losses.values()).backward()
        found.append((losses, {name: p.grad for name, p in distiller.named_parameters() if p.requires_grad}))
    torch.testing.assert_close(*found, rtol=1e-8, atol=1e-11)


def test_seven_tenths_of_ten_images_are_seven(monkeypatch):
    distiller, batch = make_distiller(), make_batch([1] * 10, height=64, width=64)
    distiller.image_share, seen = 0.7, []
    teach = distiller.teach
    monkeypatch.setattr(distiller, "teach", lambda x, part: seen.append(len(part.images)) or teach(x, part))
    distiller(batch, distill=True)
    assert seen == [7]


def test_an_image_that_the_teacher_does_not_see_is_not_taught():
    distiller, batch = make_distiller(), make_batch([2, 1])
    distiller.image_share = 0.5
    found = distiller.student.extract_features(batch)
    features = {level: x.detach().requires_grad_() for level, x in found.items()}
    losses = distiller.compute_losses(features, batch, distill=True, head_share=1.0, weight_factor=1.0)
    (losses["loss_distill"] + losses["loss_cls.tea"]).backward()
    assert features["p3"].grad[0].any()
    assert not [level for level, x in features.items() if x.grad[1].any()]


def test_weight_factor():
    distiller, batch = make_distiller(weight=3.0), make_batch([2, 1])
    one, two = (distiller(batch, distill=True, weight_factor=x)["loss_distill"] for x in (1.0, 2.0))
    assert torch.allclose(2 * one, two)


def test_divergence_loss_by_hand():
    """Two cells of 1 and -1 have the shares s and 1 - s; turned round, 1 - s and s."""
    level = torch.tensor([[[[1.0, -1.0]]]], dtype=torch.float64)
    share = 1 / (1 + math.exp(-2 / math.sqrt(1 + 1e-5)))
    divergence = share * math.log(2 * share) + (1 - share) * math.log(2 * (1 - share))
    adapted = {"p3": level, "p4": level}
    loss = divergence_loss(adapted, {"p3": 1 - level, "p4": level})
    assert loss.item() == pytest.approx(math.sqrt(divergence) / 2, rel=1e-9)  # the second level is equal


def test_divergence_loss_of_two_by_two():
    generator = torch.Generator().manual_seed(1)
    adapted, taught = (
        {"p3": torch.randn(2, 3, 2, 2, generator=generator, dtype=torch.float64)} for _ in range(2)
    )
    roots = []
    for ours, theirs in zip(adapted["p3"].flatten(0, 1), taught["p3"].flatten(0, 1), strict=True):
        p, q = (torch.softmax(F.instance_norm(x[None, None]).flatten(), 0).tolist() for x in (ours, theirs))
        pairs = list(zip(p, q, strict=True))
        entropies = [
            sum(x * math.log(x / ((x + y) / 2)) for x, y in each)
            for each in (pairs, [(y, x) for x, y in pairs])
        ]
        roots.append(math.sqrt(sum(entropies) / 2))
    assert divergence_loss(adapted, taught).item() == pytest.approx(sum(roots) / 6, rel=1e-9)


def test_equal_features_have_no_divergence_and_no_slope():
    for shape in [(1, 2, 3, 3), (1, 2, 1, 1)]:
        x = torch.randn(*shape, requires_grad=True)
        loss = divergence_loss({"p3": x}, {"p3": x.detach().clone()})
        loss.backward()
        assert loss.item() == 0
        assert x.grad.abs().max() == 0


def test_cells_that_are_not_counted_have_no_divergence():
    padded = [torch.randn(2, 4, 6, 8, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    cells = torch.zeros(6, 8, dtype=torch.bool)
    cells[:4, :5] = True
    loss = divergence_loss({"p3": padded[0]}, {"p3": padded[1]}, {"p3": cells})
    expected = divergence_loss(*({"p3": x[..., :4, :5]} for x in padded))
    assert torch.allclose(loss, expected, rtol=1e-12)
    found, wanted = (torch.autograd.grad(x, padded[0])[0] for x in (loss, expected))
    assert torch.allclose(found, wanted, rtol=1e-9, atol=1e-15)
