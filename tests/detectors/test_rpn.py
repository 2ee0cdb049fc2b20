import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from lgd.detectors.rpn import RPN, RPNHead
from lgd.ops.boxes import box_iou, clip_boxes, decode_deltas, encode_deltas
from lgd.ops.matching import BACKGROUND, FOREGROUND, IGNORED
from lgd.structures import Targets
from tests.detectors.small import make_batch

STRIDES = {"p2": 4, "p3": 8, "p4": 16}
ALL = {"batch_size_per_image": 100_000, "positive_fraction": 0.5}


def make_rpn(**kwargs):
    torch.manual_seed(0)
    settings = {
        "channels": 8,
        "strides": STRIDES,
        "anchor_sizes": [[8.0], [16.0], [32.0]],
        "aspect_ratios": [[0.5, 1.0, 2.0]],
    }
    rpn = RPN(**settings | kwargs).double()
    for name, std in (("conv", 0.2), ("objectness_logits", 0.5), ("anchor_deltas", 0.05)):
        torch.nn.init.normal_(getattr(rpn.rpn_head, name).weight, std=std)
    return rpn


def make_features(num_images=2):
    torch.manual_seed(1)
    return {
        level: torch.randn(num_images, 8, 64 // stride, 96 // stride, dtype=torch.float64)
        for level, stride in STRIDES.items()
    }


def predict(rpn, features):
    """Logits (B, A), deltas (B, A, 4), anchors (A, 4)."""
    logits, deltas = zip(*rpn._predict(features), strict=True)
    return torch.cat(logits, 1), torch.cat(deltas, 1), torch.cat(rpn._make_anchors(features))


def test_head_goes_by_row_column_anchor():
    head = RPNHead(8, 3)
    feature = torch.randn(2, 8, 4, 5)
    logits, deltas = head(feature)
    x = F.relu(head.conv(feature))
    index = (2 * 5 + 3) * 3 + 1
    assert logits.shape == (2, 60)
    assert logits[1, index] == head.objectness_logits(x)[1, 1, 2, 3]
    assert torch.equal(deltas[1, index], head.anchor_deltas(x)[1, 4:8, 2, 3])


def test_fresh_head():
    head = RPNHead(64, 3)
    for conv in (head.conv, head.objectness_logits, head.anchor_deltas):
        assert conv.weight.std().item() == pytest.approx(0.01, rel=0.15)
        assert (conv.bias == 0).all()


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_losses_of_all_anchors_by_a_slow_loop(beta):
    weights = (1.0, 2.0, 3.0, 4.0)
    rpn = make_rpn(
        smooth_l1_beta=beta, box_reg_weights=weights, loss_weight=0.5, box_reg_loss_weight=3.0, **ALL
    )
    features, batch = make_features(), make_batch([2, 1])
    losses, _ = rpn.compute_losses(features, batch)
    logits, deltas, anchors = predict(rpn, features)
    loss_cls = loss_loc = 0.0
    for image in range(2):
        boxes = batch.targets.boxes[image][batch.targets.valid[image]]
        overlaps = box_iou(boxes, anchors)
        best, index = overlaps.max(0)
        rescued = (overlaps == overlaps.max(1, keepdim=True).values).any(0)
        foreground, background = (best >= 0.7) | rescued, (best < 0.3) & ~rescued
        assert foreground.any()
        assert (best[foreground] < 0.7).any()
        loss_cls += F.softplus(-logits[image][foreground]).sum() + F.softplus(logits[image][background]).sum()
        targets = encode_deltas(anchors[foreground], boxes[index[foreground]], weights)
        errors = (deltas[image][foreground] - targets).abs()
        quadratic = errors**2 / (2 * beta) if beta else errors
        loss_loc += torch.where(errors < beta, quadratic, errors - beta / 2).sum()
    scale = 0.5 / (100_000 * 2)
    assert losses["loss_rpn_cls"].item() == pytest.approx(loss_cls.item() * scale)
    assert losses["loss_rpn_loc"].item() == pytest.approx(loss_loc.item() * scale * 3)


def test_samples_are_as_many_as_asked_for():
    rpn = make_rpn(batch_size_per_image=10, positive_fraction=0.2, iou_thresholds=(0.05, 0.2))
    torch.nn.init.zeros_(rpn.rpn_head.objectness_logits.weight)
    torch.nn.init.constant_(rpn.rpn_head.objectness_logits.bias, 1.0)
    losses, _ = rpn.compute_losses(make_features(), make_batch([3, 3]))
    expected = 0.2 * math.log(1 + math.exp(-1)) + 0.8 * math.log(1 + math.e)
    assert losses["loss_rpn_cls"].item() == pytest.approx(expected)


def assign(rpn, boxes, size=(64, 96)):
    boxes = torch.tensor([boxes], dtype=torch.float64)
    targets = Targets(boxes, torch.zeros(boxes.shape[:2]).long(), torch.ones(boxes.shape[:2]).bool())
    features = make_features(1)
    anchors = torch.cat(rpn._make_anchors(features))
    return rpn.assign(anchors, targets, torch.tensor([size])), anchors


def test_assignment():
    matches, anchors = assign(make_rpn(), [[12.0, 4.0, 20.0, 12.0]])  # an anchor of p2 in row 2, column 4
    index = (2 * 24 + 4) * 3 + 1
    assert anchors[index].tolist() == [12, 4, 20, 12]
    assert matches.labels[0, index] == FOREGROUND
    assert set(matches.labels.unique().tolist()) == {FOREGROUND, BACKGROUND, IGNORED}


@pytest.mark.parametrize("border", [0, 5])
def test_anchors_out_of_the_image_do_not_count(border):
    everywhere, anchors = assign(make_rpn(), [[12.0, 4.0, 20.0, 12.0]])
    matches, _ = assign(make_rpn(boundary_thresh=border), [[12.0, 4.0, 20.0, 12.0]], size=(48, 80))
    for anchor, label, before in zip(
        anchors.tolist(), matches.labels[0].tolist(), everywhere.labels[0].tolist(), strict=True
    ):
        x1, y1, x2, y2 = anchor
        inside = min(x1, y1) >= -border and x2 < 80 + border and y2 < 48 + border
        assert label == (before if inside else IGNORED)


def propose_slowly(rpn, features, image, size, pre_nms, post_nms):
    """Level by level, box by box."""
    survivors = []
    for (logits, deltas), anchors in zip(rpn._predict(features), rpn._make_anchors(features), strict=True):
        kept = []
        for index in logits[image].argsort(descending=True)[:pre_nms].tolist():
            box = clip_boxes(decode_deltas(anchors[index], deltas[image, index]), size)
            empty = (box[2:] - box[:2] <= rpn.min_size).any()
            if not empty and all(box_iou(box[None], other[None]) <= rpn.nms_thresh for _, other in kept):
                kept.append((logits[image, index].item(), box))
        survivors += kept
    survivors.sort(key=lambda pair: -pair[0])
    return [box for _, box in survivors[:post_nms]]


@pytest.mark.parametrize("reference_order", [False, True])
@pytest.mark.parametrize(("training", "pre_nms", "post_nms"), [(True, 50, 30), (False, 40, 1000)])
def test_proposals_by_a_slow_loop(reference_order, training, pre_nms, post_nms):
    rpn = make_rpn(
        pre_nms_topk_train=50,
        post_nms_topk_train=30,
        pre_nms_topk_test=40,
        post_nms_topk_test=1000,
        nms_thresh=0.5,
        min_size=3,
        reference_order=reference_order,
    ).train(training)
    features, batch = make_features(), make_batch([2, 1])
    proposals = rpn.propose(features, batch)
    assert not proposals.boxes.requires_grad
    for image in range(2):
        expected = propose_slowly(rpn, features, image, batch.sizes[image], pre_nms, post_nms)
        assert torch.equal(proposals.boxes[image][proposals.valid[image]], torch.stack(expected))
        assert not proposals.valid[image, len(expected) :].any()
        assert (proposals.boxes[image][~proposals.valid[image]] == 0).all()
    _, same = rpn.compute_losses(features, batch)
    assert torch.equal(same.boxes, proposals.boxes)


def test_what_is_not_finite_is_not_proposed():
    rpn, features = make_rpn(post_nms_topk_train=10_000), make_features()
    features["p3"][0] = torch.nan
    features["p4"][0] = torch.inf
    proposals = rpn.propose(features, make_batch([1, 1]))
    assert torch.isfinite(proposals.boxes).all()
    assert 0 < proposals.valid[0].sum() < proposals.valid[1].sum()


def test_slots_are_no_more_than_anchors():
    assert make_rpn().propose(make_features(), make_batch([1, 1])).boxes.shape == (2, 1000, 4)
    few = make_rpn(pre_nms_topk_train=7).propose(make_features(), make_batch([1, 1]))
    assert few.boxes.shape == (2, 21, 4)


def test_offset_moves_the_anchors():
    features = make_features()
    for moved, anchors, stride in zip(
        make_rpn(anchor_offset=0.5)._make_anchors(features),
        make_rpn()._make_anchors(features),
        STRIDES.values(),
        strict=True,
    ):
        assert torch.equal(moved, anchors + stride / 2)


def test_rows_of_anchors_that_do_not_fit():
    with pytest.raises(ValueError, match="anchor_sizes has 2 rows for 3 levels"):
        make_rpn(anchor_sizes=[[8.0], [16.0]])


def test_crowded_and_empty_slots_do_not_matter():
    rpn, features, batch = make_rpn(**ALL), make_features(), make_batch([2, 0])
    wider = {
        name: F.pad(getattr(batch.targets, name), (0, 0, 0, 40) if name == "boxes" else (0, 40))
        for name in ("boxes", "labels", "valid")
    }
    other = dataclasses.replace(batch, targets=Targets(**wider))
    losses, _ = rpn.compute_losses(features, batch)
    others, _ = rpn.compute_losses(features, other)
    for name, loss in losses.items():
        assert others[name].item() == pytest.approx(loss.item(), rel=1e-12)
