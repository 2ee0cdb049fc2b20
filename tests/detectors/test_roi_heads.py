import dataclasses

import pytest
import torch
import torch.nn.functional as F

from lgd.detectors.mask_head import MaskHead
from lgd.detectors.roi_heads import BoxHead, BoxPredictor, RoIHeads
from lgd.detectors.rpn import Proposals
from lgd.ops.boxes import box_iou, decode_deltas, encode_deltas
from lgd.ops.polygons import rasterize_in_boxes
from lgd.ops.roi_align import multilevel_roi_align
from tests.detectors.small import make_batch, with_masks

STRIDES = {"p2": 4, "p3": 8}
K = 3


def make_heads(agnostic=False, masks=False, **kwargs):
    torch.manual_seed(0)
    box_head = BoxHead(channels=8, fc_channels=16, resolution=3)
    predictor = BoxPredictor(in_channels=16, num_classes=K, class_agnostic=agnostic)
    for layer in (predictor.cls_score, predictor.bbox_pred):
        torch.nn.init.normal_(layer.weight, std=0.3)
    mask_head = MaskHead(channels=8, num_classes=K, num_convs=1, conv_channels=4, resolution=5)
    heads = RoIHeads(
        num_classes=K,
        strides=STRIDES,
        box_head=box_head,
        box_predictor=predictor,
        mask_head=mask_head if masks else None,
        **{"batch_size_per_image": 1000, "positive_fraction": 1.0} | kwargs,
    )
    return heads.double()


def make_features(num_images=2):
    torch.manual_seed(1)
    return {
        level: torch.randn(num_images, 8, 64 // stride, 96 // stride, dtype=torch.float64)
        for level, stride in STRIDES.items()
    }


def make_proposals(batch, count=30, num_valid=(30, 20)):
    """Some near the objects, some anywhere."""
    torch.manual_seed(2)
    num_images = len(batch.sizes)
    corners = torch.rand(num_images, count, 2, dtype=torch.float64) * 30
    boxes = torch.cat([corners, corners + 4 + 20 * torch.rand(num_images, count, 2).double()], dim=-1)
    shift = torch.tensor([0.5, 0.3, 0.9, 0.8], dtype=torch.float64)
    near = batch.targets.boxes[:, torch.arange(count) % batch.targets.boxes.shape[1]]
    boxes = torch.where(torch.arange(count)[:, None] % 3 == 0, near + shift, boxes)
    valid = torch.arange(count) < torch.tensor(num_valid)[:, None]
    return Proposals(boxes * valid[..., None], valid)


def list_regions(batch, proposals, append=True, threshold=0.5):
    """Every region: (image, box, label, object), one at a time."""
    regions = []
    for image in range(len(batch.sizes)):
        boxes = list(proposals.boxes[image][proposals.valid[image]])
        objects = batch.targets.valid[image].nonzero().flatten().tolist()
        boxes += [batch.targets.boxes[image, index] for index in objects] if append else []
        for box in boxes:
            overlaps = [box_iou(box[None], batch.targets.boxes[image, i, None]).item() for i in objects]
            best = max(overlaps, default=0)
            index = objects[overlaps.index(best)] if objects else None
            label = batch.targets.labels[image, index].item() if best >= threshold else K
            regions.append((image, box, label, index))
    return regions


def pool(features, regions, head):
    return multilevel_roi_align(
        list(features.values()),
        list(STRIDES.values()),
        torch.stack([box for _, box, _, _ in regions]),
        torch.tensor([image for image, *_ in regions]),
        resolution=head.resolution,
        sampling_ratio=head.sampling_ratio,
    )


class TestBoxHead:
    def test_two_layers_over_the_flattened_map(self):
        head = BoxHead(channels=4, fc_channels=6, resolution=2)
        x = torch.randn(3, 4, 2, 2)
        assert torch.equal(head(x), F.relu(head.fc2(F.relu(head.fc1(x.flatten(1))))))
        assert head.out_channels == 6

    def test_convolutions_come_first(self):
        head = BoxHead(channels=4, num_convs=2, conv_channels=5, num_fcs=1, fc_channels=6, resolution=3)
        x = torch.randn(3, 4, 3, 3)
        expected = F.relu(head.fc1(F.relu(head.conv2(F.relu(head.conv1(x)))).flatten(1)))
        assert torch.equal(head(x), expected)
        assert head.conv1.bias is not None

    def test_norms_take_the_biases_of_convolutions(self):
        head = BoxHead(channels=8, num_convs=1, conv_channels=16, norm="GN", num_fcs=0, resolution=3)
        assert head.conv1.bias is None
        assert head.out_channels == 16 * 9
        assert head(torch.randn(2, 8, 3, 3)).shape == (2, 144)

    def test_fresh_layers(self):
        head = BoxHead(channels=16, num_convs=1, conv_channels=64, fc_channels=64, resolution=3)
        assert head.conv1.weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.1)
        assert head.fc1.weight.std().item() == pytest.approx((1 / (9 * 64)) ** 0.5, rel=0.1)
        predictor = BoxPredictor(in_channels=64, num_classes=20)
        assert predictor.cls_score.weight.std().item() == pytest.approx(0.01, rel=0.1)
        assert predictor.bbox_pred.weight.std().item() == pytest.approx(0.001, rel=0.1)
        layers = (head.conv1, head.fc1, head.fc2, predictor.cls_score, predictor.bbox_pred)
        assert all((layer.bias == 0).all() for layer in layers)


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("append", [False, True])
def test_box_losses_of_all_regions_by_a_slow_loop(agnostic, append):
    heads = make_heads(agnostic, append_objects=append, box_reg_loss_weight=2.0, smooth_l1_beta=0.2)
    features, batch = make_features(), make_batch([3, 1])
    proposals = make_proposals(batch)
    losses = heads.compute_losses(features, proposals, batch.targets)
    regions = list_regions(batch, proposals, append)
    assert {label for _, _, label, _ in regions} > {K}
    logits, deltas = heads.box_predictor(heads.box_head(pool(features, regions, heads.box_head)))
    labels = torch.tensor([label for _, _, label, _ in regions])
    assert losses["loss_cls"].item() == pytest.approx(F.cross_entropy(logits, labels).item())
    total = 0.0
    for (image, box, label, index), row in zip(regions, deltas, strict=True):
        if label < K:
            target = encode_deltas(box, batch.targets.boxes[image, index], (10.0, 10.0, 5.0, 5.0))
            total += F.smooth_l1_loss(row[0 if agnostic else label], target, beta=0.2, reduction="sum")
    assert losses["loss_box_reg"].item() == pytest.approx(2 * total.item() / len(regions))


def test_mask_loss_of_all_regions_by_a_slow_loop():
    heads, features, batch = make_heads(masks=True), make_features(), with_masks(make_batch([3, 1]))
    proposals = make_proposals(batch)
    losses = heads.compute_losses(features, proposals, batch.targets)
    regions = [region for region in list_regions(batch, proposals) if region[2] < K]
    labels = torch.tensor([label for _, _, label, _ in regions])
    logits = heads.mask_head(pool(features, regions, heads.mask_head), labels)
    outlines, total = batch.targets.outlines, 0.0
    for (image, box, _, index), row in zip(regions, logits, strict=True):
        mask = rasterize_in_boxes(
            outlines.edges[image, index, None], outlines.parts[image, index, None], 2, box[None], 10
        )
        total += F.binary_cross_entropy_with_logits(row, mask[0].double())
    assert losses["loss_mask"].item() == pytest.approx(total.item() / len(regions))


def test_masks_that_are_missing():
    batch = make_batch([1, 1])
    with pytest.raises(ValueError, match=r"these targets have none; .* MODEL\.MASK_ON False"):
        make_heads(masks=True).compute_losses(make_features(), make_proposals(batch), batch.targets)


class TestSampling:
    def test_slots(self):
        heads = make_heads(batch_size_per_image=8, positive_fraction=0.25)
        batch = make_batch([3, 0])
        regions = heads.sample(make_proposals(batch), batch.targets)
        assert regions.boxes.shape == (2, 8, 4)
        assert ((regions.labels >= 0) & (regions.labels < K)).sum(1).tolist() == [2, 0]
        assert (regions.labels == K).sum(1).tolist() == [6, 8]

    def test_memory_goes_by_the_proposals(self):
        batch = make_batch([3, 0])
        regions = make_heads(batch_size_per_image=8192).sample(make_proposals(batch), batch.targets)
        assert regions.boxes.shape == (2, 34, 4)
        assert (regions.labels >= 0).sum(1).tolist() == [33, 20]

    def test_between_the_thresholds_is_ignored(self):
        heads = make_heads(iou_thresholds=(0.1, 0.6))
        batch = make_batch([3, 0])
        proposals = make_proposals(batch)
        regions = heads.sample(proposals, batch.targets)
        labels = regions.labels[0][regions.labels[0] >= 0]
        overlaps = box_iou(proposals.boxes[0], batch.targets.boxes[0]).amax(1)
        assert (labels < K).sum() == (overlaps >= 0.6).sum() + 3
        assert (labels == K).sum() == (overlaps < 0.1).sum()

    def test_objects_without_area_are_background(self):
        batch = make_batch([2, 1])
        flat = batch.targets.boxes[..., [0, 1, 0, 3]]
        targets = dataclasses.replace(batch.targets, boxes=flat)
        losses = make_heads().compute_losses(make_features(), make_proposals(batch), targets)
        assert losses["loss_box_reg"] == 0
        assert torch.isfinite(losses["loss_cls"])


def detect_slowly(heads, features, proposals, batch, image):
    """Proposal by proposal, class by class: (box, score, label), best first."""
    boxes = proposals.boxes[image][proposals.valid[image]]
    regions = [(image, box, None, None) for box in boxes]
    logits, deltas = heads.box_predictor(heads.box_head(pool(features, regions, heads.box_head)))
    height, width = batch.sizes[image].tolist()
    found = []
    for box, scores, rows in zip(boxes, logits.softmax(1), deltas, strict=True):
        for label in range(K):
            if scores[label] > heads.score_thresh_test:
                row = rows[label if len(rows) > 1 else 0]
                x1, y1, x2, y2 = decode_deltas(box, row, (10.0, 10.0, 5.0, 5.0)).tolist()
                x1, x2 = (min(max(x, 0), width) for x in (x1, x2))
                y1, y2 = (min(max(y, 0), height) for y in (y1, y2))
                found.append(([x1, y1, x2, y2], scores[label].item(), label))
    kept = []
    for box, score, label in sorted(found, key=lambda x: -x[1]):
        overlaps = [
            box_iou(torch.tensor([box]).double(), torch.tensor([other]).double()).item()
            for other, _, other_label in kept
            if other_label == label
        ]
        if all(overlap <= heads.nms_thresh_test for overlap in overlaps):
            kept.append((box, score, label))
    return kept[: heads.detections_per_image]


@pytest.mark.parametrize(("agnostic", "limit"), [(False, 100), (True, 9)])
def test_detections_by_a_slow_loop(agnostic, limit):
    heads = make_heads(agnostic, masks=True, detections_per_image=limit, score_thresh_test=0.2).eval()
    features, batch = make_features(), make_batch([3, 1])
    proposals = make_proposals(batch)
    detections = heads.decode(features, proposals, batch).cut()
    for image, found in enumerate(detections):
        expected = detect_slowly(heads, features, proposals, batch, image)
        assert len(found.scores) == len(expected) > 5
        assert found.labels.tolist() == [label for _, _, label in expected]
        assert torch.allclose(found.scores, torch.tensor([s for _, s, _ in expected]).double())
        boxes = torch.tensor([box for box, _, _ in expected]).double()
        assert torch.allclose(found.boxes, 2 * boxes)  # the original images are twice as large
        regions = [(image, box, None, None) for box in boxes]
        masks = heads.mask_head(pool(features, regions, heads.mask_head), found.labels).sigmoid()
        assert torch.allclose(found.masks, masks)


def test_nothing_found():
    heads, batch = make_heads(masks=True, score_thresh_test=1.0), make_batch([1, 1])
    for found in heads.decode(make_features(), make_proposals(batch), batch).cut():
        assert found.boxes.shape == (0, 4)
        assert found.masks.shape == (0, 10, 10)


def test_levels_must_double():
    with pytest.raises(ValueError, match=r"strides double, not \{'p2': 4, 'p4': 16\}"):
        RoIHeads(
            num_classes=1,
            strides={"p2": 4, "p4": 16},
            box_head=BoxHead(channels=4),
            box_predictor=BoxPredictor(in_channels=8, num_classes=1),
        )
