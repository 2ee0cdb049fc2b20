import math

import pytest
import torch
import torch.nn.functional as F

from lgd.ops.losses import giou_loss, sigmoid_focal_loss, smooth_l1_loss


def focal_with_one_hot(logits, labels, alpha, gamma):
    num_classes = logits.shape[-1]
    counted = labels >= 0
    targets = F.one_hot(labels[counted], num_classes + 1)[:, :num_classes].to(logits.dtype)
    logits = logits[counted]
    p = torch.sigmoid(logits)
    p_true = torch.where(targets == 1, p, 1 - p)
    weight = alpha * targets + (1 - alpha) * (1 - targets)
    entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return (weight * (1 - p_true) ** gamma * entropy).sum()


def test_focal_by_hand():
    logits = torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0]], dtype=torch.float64)
    labels = torch.tensor([1, -1])
    expected = 0.75 * 0.5**2 * math.log(2) + 0.25 * 0.25**2 * -math.log(0.75)
    assert sigmoid_focal_loss(logits, labels, alpha=0.25, gamma=2.0).item() == pytest.approx(expected)


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.5, 0.0), (0.9, 1.5)])
@pytest.mark.parametrize("num_classes", [1, 5])
def test_focal_and_its_gradient_like_one_hot(alpha, gamma, num_classes):
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(2, 60, num_classes, generator=generator, dtype=torch.float64) * 4).requires_grad_()
    labels = torch.randint(-1, num_classes + 1, (2, 60), generator=generator)
    ours = sigmoid_focal_loss(logits, labels, alpha=alpha, gamma=gamma)
    theirs = focal_with_one_hot(logits, labels, alpha, gamma)
    assert torch.allclose(ours, theirs, rtol=1e-12)
    assert torch.allclose(*(torch.autograd.grad(x, logits)[0] for x in (ours, theirs)), atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_focal_is_finite_far_out(dtype):
    logits = torch.tensor([[200.0], [-200.0], [200.0], [-200.0]], dtype=dtype, requires_grad=True)
    loss = sigmoid_focal_loss(logits, torch.tensor([0, 0, 1, 1]), alpha=0.25, gamma=2.0)
    assert loss.item() == pytest.approx(0.25 * 200 + 0.75 * 200)
    loss.backward()
    assert torch.isfinite(logits.grad).all()


def test_focal_of_background_is_exact_to_the_last_digits():
    logits = torch.linspace(-30, 30, 241)[:, None]
    for each, exact in zip(logits, F.softplus(logits.double()), strict=True):
        found = sigmoid_focal_loss(each[None], torch.tensor([1]), alpha=0.25, gamma=0.0)
        assert found.item() == pytest.approx(0.75 * exact.item(), rel=1e-6)


def test_focal_of_nothing_is_zero():
    logits = torch.randn(3, 4, requires_grad=True)
    loss = sigmoid_focal_loss(logits, torch.full((3,), -1), alpha=0.25, gamma=2.0)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros(3, 4))


def test_smooth_l1_by_hand():
    predictions, targets = torch.tensor([[0.0, 3.0], [9.0, 9.0]]), torch.tensor([[0.5, 0.0], [0.0, 0.0]])
    mask = torch.tensor([True, False])
    assert smooth_l1_loss(predictions, targets, mask, beta=0.0).item() == 3.5
    assert smooth_l1_loss(predictions, targets, mask, beta=1.0).item() == 0.125 + 2.5


def giou_slowly(a, b):
    def area(x1, y1, x2, y2):
        return max(0, x2 - x1) * max(0, y2 - y1)

    overlap = area(max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))
    union = area(*a) + area(*b) - overlap
    hull = area(min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3]))
    return overlap / union - (hull - union) / hull


@pytest.mark.parametrize(
    ("box", "loss"),
    [
        ([0.0, 0, 4, 2], 0.0),
        ([2.0, 0, 6, 2], 1 - 4 / 12),
        ([4.0, 0, 8, 2], 1.0),
        ([12.0, 0, 16, 2], 1 + 16 / 32),
        ([0.0, 0, 2, 1], 1 - 2 / 8),
    ],
)
def test_giou_by_hand(box, loss):
    target = torch.tensor([[0.0, 0, 4, 2]])
    assert giou_loss(torch.tensor([box]), target, torch.ones(1)).item() == pytest.approx(loss)
    assert giou_loss(torch.tensor([box]), target, torch.tensor([0.25])).item() == pytest.approx(loss / 4)


def test_giou_like_slowly():
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(2, 3, 50, 2, generator=generator, dtype=torch.float64)
    sizes = torch.rand(2, 3, 50, 2, generator=generator, dtype=torch.float64)
    boxes, targets = torch.cat([corners, corners + sizes], dim=-1)
    weights = torch.rand(3, 50, generator=generator, dtype=torch.float64)
    expected = sum(
        weight * (1 - giou_slowly(a, b))
        for a, b, weight in zip(
            boxes.flatten(0, 1).tolist(),
            targets.flatten(0, 1).tolist(),
            weights.flatten().tolist(),
            strict=True,
        )
    )
    assert giou_loss(boxes, targets, weights).item() == pytest.approx(expected, rel=1e-12)


def test_giou_of_boxes_without_area_is_finite():
    boxes = torch.zeros(2, 4, requires_grad=True)
    targets = torch.tensor([[0.0, 0, 0, 0], [3.0, 3, 5, 5]])
    loss = giou_loss(boxes, targets, torch.ones(2))
    loss.backward()
    assert loss.item() == pytest.approx(1 + 1 + 21 / 25)
    assert torch.isfinite(boxes.grad).all()


def test_giou_takes_no_gradient_from_rows_of_weight_zero():
    boxes = torch.tensor([[0.0, 0, 2, 2], [0, 0, math.inf, math.nan]], requires_grad=True)
    loss = giou_loss(boxes, torch.tensor([[0.0, 0, 4, 4]]).expand(2, 4), torch.tensor([1.0, 0.0]))
    loss.backward()
    assert loss.item() == pytest.approx(0.75)
    assert boxes.grad[0].abs().sum() > 0
    assert boxes.grad[1].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("gamma", [0.0, 1.5, 2.0])
def test_focal_keeps_the_logits_alone_for_the_backward_pass(gamma):
    logits = torch.randn(50, 20, dtype=torch.float64, requires_grad=True)
    labels = torch.arange(50) % 22 - 1
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        sigmoid_focal_loss(logits, labels, alpha=0.25, gamma=gamma)
    assert sum(storage.nbytes() for storage in kept.values()) < 1.3 * logits.untyped_storage().nbytes()
    assert torch.autograd.gradcheck(
        lambda x: sigmoid_focal_loss(x, labels, alpha=0.25, gamma=gamma), [logits]
    )
