import dataclasses

import pytest
import torch

from lgd.distill.distiller import Adapter, LabelGuidedDistiller
from lgd.distill.teacher import DynamicTeacher
from lgd.ops import roi_align
from tests.detectors.small import excite_head, make_batch, make_faster_rcnn, make_mask_rcnn, with_masks

NAMES = ["loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg"]


@pytest.mark.parametrize(
    ("make", "names"), [(make_faster_rcnn, NAMES), (make_mask_rcnn, [*NAMES, "loss_mask"])]
)
def test_losses_by_name_and_no_assignment(make, names):
    detector, batch = make(), with_masks(make_batch([2, 1], dtype=torch.float32))
    losses, assignment = detector.compute_losses(detector.extract_features(batch), batch)
    assert list(losses) == names
    assert assignment is None


def test_masks_that_are_missing():
    detector, batch = make_mask_rcnn(), make_batch([2, 1], dtype=torch.float32)
    with pytest.raises(ValueError, match=r"MODEL\.MASK_ON False"):
        detector.compute_losses(detector.extract_features(batch), batch)


def test_every_call_samples_anew_by_the_global_generator():
    detector = make_faster_rcnn(rpn={"batch_size_per_image": 16}).double()
    batch = make_batch([2, 1])
    features = detector.extract_features(batch)

    def compute(seed):
        torch.manual_seed(seed)
        return [detector.compute_losses(features, batch)[0] for _ in range(2)]

    first, second = compute(0)
    assert first["loss_rpn_cls"] != second["loss_rpn_cls"]
    assert compute(0) == [first, second]


def test_the_teachers_pass_runs_both_stages_on_its_features():
    torch.manual_seed(0)
    student = make_mask_rcnn()
    model = LabelGuidedDistiller(
        student=student, teacher=DynamicTeacher(channels=16, num_classes=3), adapter=Adapter(16)
    ).double()
    batch = with_masks(make_batch([2, 1]))
    losses = model(batch, distill=True)
    assert list(losses) == [*NAMES, "loss_mask", *(f"{n}.tea" for n in [*NAMES, "loss_mask"]), "loss_distill"]
    assert losses["loss_rpn_cls.tea"] != losses["loss_rpn_cls"]
    sum(losses.values()).backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert [name for name, p in trained.items() if p.grad is None] == []
    assert all((p.grad != 0).any() for name, p in trained.items() if name.startswith("student.roi_heads."))


def test_masks_follow_their_detections():
    """The mask of a detection does not depend on the others: fewer detections are the same ones."""
    detector = make_mask_rcnn().double().eval()
    excite_head(detector)
    batch = make_batch([1, 1])
    features = detector.extract_features(batch)
    many = detector.detect(features, batch)
    detector.roi_heads.detections_per_image = 5
    for all_of_them, few in zip(many, detector.detect(features, batch), strict=True):
        assert few.masks.shape == (5, 8, 8)
        assert torch.equal(few.boxes, all_of_them.boxes[:5])
        assert torch.allclose(few.masks, all_of_them.masks[:5])
        assert 0 <= few.masks.min() < few.masks.max() <= 1


def test_host_syncs_of_the_training_step(monkeypatch):
    """On tensors without data asking for a value raises: only the suppression, an operator, and this do."""
    calls = []

    def all_on_the_first_level(levels, num_levels):
        calls.append("count")
        return [len(levels)] + [0] * (num_levels - 1)

    monkeypatch.setattr(roi_align, "_count", all_on_the_first_level)
    detector = make_faster_rcnn().to("meta")
    batch = make_batch([2, 1], dtype=torch.float32).to("meta")
    losses, _ = detector.compute_losses(detector.extract_features(batch), batch)
    sum(losses.values()).backward()
    assert calls == ["count"]


def test_learns_a_batch_by_heart():
    torch.manual_seed(0)
    detector, batch = make_faster_rcnn(), make_batch([2, 1], dtype=torch.float32)
    optimizer = torch.optim.Adam([p for p in detector.parameters() if p.requires_grad], lr=3e-3)
    totals = []
    for _ in range(40):
        losses, _ = detector.compute_losses(detector.extract_features(batch), batch)
        total = sum(losses.values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert totals[-1] < 0.5 * totals[0]


def test_batches_do_not_mix():
    """The detections of an image are the same in any company."""
    detector = make_mask_rcnn().double().eval()
    excite_head(detector)
    batch = make_batch([1, 1])
    alone = dataclasses.replace(
        batch,
        images=batch.images[1:],
        sizes=batch.sizes[1:],
        original_sizes=batch.original_sizes[1:],
        image_ids=batch.image_ids[1:],
    )
    (found,) = detector.detect(detector.extract_features(alone), alone)
    together = detector.detect(detector.extract_features(batch), batch)[1]
    assert torch.equal(found.labels, together.labels)
    assert torch.allclose(found.boxes, together.boxes)
    assert torch.allclose(found.masks, together.masks)
