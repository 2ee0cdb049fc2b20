import pytest
import torch
import torch.nn.functional as F

from lgd.detectors.mask_head import MaskHead, mask_loss


def test_the_mask_of_each_regions_class():
    head = MaskHead(channels=6, num_classes=4, num_convs=2, conv_channels=5)
    x = torch.randn(3, 6, 14, 14)
    labels = torch.tensor([2, 0, 2])
    masks = head(x, labels)
    assert masks.shape == (3, 28, 28)
    y = F.relu(head.mask_fcn2(F.relu(head.mask_fcn1(x))))
    everything = head.predictor(F.relu(head.deconv(y)))
    for index, label in enumerate(labels.tolist()):
        assert torch.equal(masks[index], everything[index, label])


def test_one_mask_for_all_classes():
    head = MaskHead(channels=6, num_classes=1, num_convs=0, conv_channels=5, resolution=3)
    x = torch.randn(2, 6, 3, 3)
    assert torch.equal(head(x, torch.tensor([0, 7])), head(x, torch.tensor([3, 0])))


def test_norms_take_the_biases_of_convolutions():
    names = dict(MaskHead(channels=8, num_classes=2, num_convs=1, norm="GN").named_parameters())
    assert "mask_fcn1.bias" not in names
    assert "mask_fcn1.norm.weight" in names


def test_fresh_head():
    head = MaskHead(channels=64, num_classes=20, num_convs=1, conv_channels=64)
    assert head.predictor.weight.std().item() == pytest.approx(0.001, rel=0.1)
    assert head.mask_fcn1.weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.1)
    assert head.deconv.weight.std().item() == pytest.approx((2 / (4 * 64)) ** 0.5, rel=0.1)
    assert all((layer.bias == 0).all() for layer in (head.predictor, head.mask_fcn1, head.deconv))


def test_loss_by_hand():
    logits = torch.tensor([[[0.0, 1.0]], [[-2.0, 3.0]]])
    masks = torch.tensor([[[True, False]], [[False, True]]])
    expected = F.softplus(torch.tensor([0.0, 1.0, -2.0, -3.0])).mean()
    assert mask_loss(logits, masks).item() == pytest.approx(expected.item())


def test_without_regions_every_parameter_has_a_zero_gradient():
    head = MaskHead(channels=6, num_classes=4, num_convs=1, conv_channels=5, resolution=3)
    loss = mask_loss(head(torch.zeros(0, 6, 3, 3), torch.zeros(0).long()), torch.zeros(0, 6, 6).bool())
    loss.backward()
    assert loss == 0
    assert all((p.grad == 0).all() for p in head.parameters())
