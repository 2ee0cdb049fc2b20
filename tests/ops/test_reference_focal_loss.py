import torch

from lgd.ops.losses import reference_focal_loss, sigmoid_focal_loss


def test_it_is_the_focal_loss_in_float32():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, 50, 4, generator=generator, dtype=torch.float64)
    labels = torch.randint(-1, 5, (2, 50), generator=generator)
    leaves = [logits.clone().requires_grad_() for _ in range(2)]
    exact = sigmoid_focal_loss(leaves[0], labels, alpha=0.25, gamma=2.0)
    rounded = reference_focal_loss(leaves[1], labels, alpha=0.25, gamma=2.0)
    for loss in (exact, rounded):
        loss.backward()
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded.double(), exact, rtol=1e-6, atol=0)
    torch.testing.assert_close(leaves[1].grad, leaves[0].grad, rtol=1e-5, atol=1e-7)
    assert (leaves[1].grad[labels == -1] == 0).all()


def test_without_counted_anchors_it_is_zero():
    loss = reference_focal_loss(torch.randn(3, 4), torch.full((3,), -1), alpha=0.25, gamma=2.0)
    assert loss.item() == 0.0
