import math

import pytest
import torch
import torch.nn.functional as F

from lgd.detectors import points
from lgd.ops.losses import sigmoid_focal_loss
from tests.detectors.scenes import overlap
from tests.detectors.small import excite_head, make_atss, make_batch, make_fcos, make_poto
from tests.detectors.test_retinanet import slice_batch


class TestHead:
    def predict(self, **kwargs):
        """Predictions of p4 for random features, and what stands in the maps."""
        head = make_fcos(**kwargs).double().head
        torch.nn.init.normal_(head.bbox_pred.weight, std=0.1)
        features = {f"p{n}": torch.randn(2, 16, 3, 4, dtype=torch.float64) for n in range(3, 8)}
        for index, scale in enumerate(head.scales):
            torch.nn.init.constant_(scale.scale, 1 + index)
        for_class, for_box = head.cls_subnet(features["p4"]), head.bbox_subnet(features["p4"])
        return head, head(features)[1], for_class, for_box

    def test_order_and_units(self):
        head, predictions, for_class, for_box = self.predict()
        row, column, index = 2, 1, 2 * 4 + 1
        assert predictions.logits.shape == (2, 12, 3)
        assert predictions.logits[1, index, 2] == head.cls_score(for_class)[1, 2, row, column]
        raw = head.bbox_pred(for_box)[1, :, row, column]
        assert torch.equal(predictions.distances[1, index], (raw * 2).clamp(min=0) * 16)
        assert predictions.centerness[1, index] == head.centerness(for_box)[1, 0, row, column]

    def test_distances_as_logarithms_of_pixels(self):
        head, predictions, _, for_box = self.predict(distances_in_strides=False)
        assert torch.equal(predictions.distances[0, 5], (head.bbox_pred(for_box)[0, :, 1, 1] * 2).exp())

    def test_centerness_on_the_class_tower(self):
        head, predictions, for_class, _ = self.predict(centerness="class")
        assert predictions.centerness[1, 3] == head.centerness(for_class)[1, 0, 0, 3]

    def test_without_centerness(self):
        head, predictions, *_ = self.predict(centerness=None)
        assert predictions.centerness is None
        assert not any("centerness" in name for name in head.state_dict())

    def test_fresh_head_predicts_the_prior(self):
        head = make_fcos(prior_prob=0.2).head
        assert head.cls_score.bias.sigmoid().allclose(torch.tensor(0.2))
        assert head.cls_score.weight.std().item() == pytest.approx(0.01, rel=0.1)
        assert head.cls_subnet[1].weight.tolist() == [1] * 16

    def test_state_names(self):
        names = set(make_fcos(num_convs=2).state_dict())
        assert {"head.cls_subnet.0.weight", "head.cls_subnet.1.bias", "head.bbox_subnet.3.weight"} <= names
        assert {"head.cls_score.bias", "head.bbox_pred.bias", "head.centerness.weight"} <= names
        assert {"head.scales.0.scale", "head.scales.4.scale"} <= names
        assert not any("pixel" in name or "normalizer" in name for name in names)


def giou_loss_slowly(prediction, target):
    """Of boxes as distances from one location."""
    a, b = ([-x[0], -x[1], x[2], x[3]] for x in (prediction, target))
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    iou = overlap(a, b)
    union = sum((c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)) / (1 + iou)
    return 1 - iou + (hull - union) / hull


@pytest.mark.parametrize(("make_detector", "box_weight"), [(make_fcos, 1), (make_atss, 2), (make_poto, 2)])
def test_losses_by_hand(make_detector, box_weight):
    detector, batch = make_detector().double(), make_batch([3, 1, 0])
    excite_head(detector)
    features = detector.extract_features(batch)
    losses, assignment = detector.compute_losses(features, batch)
    predictions = detector.head(features)
    logits, distances = (
        torch.cat([getattr(level, name) for level in predictions], dim=1) for name in ("logits", "distances")
    )
    foreground = assignment.labels < 3
    count = foreground.sum().item()
    assert count >= 4
    focal = sigmoid_focal_loss(logits, assignment.labels, alpha=0.25, gamma=2.0)
    assert losses["loss_cls"].item() == pytest.approx(focal.item() / count)
    central, box = [], 0
    for prediction, target in zip(
        distances[foreground].tolist(), assignment.distances[foreground].tolist(), strict=True
    ):
        left, top, right, bottom = target
        ratio = min(left, right) / max(left, right) * min(top, bottom) / max(top, bottom)
        central.append(1.0 if make_detector is make_poto else math.sqrt(max(0, ratio)))
        box += giou_loss_slowly(prediction, target) * central[-1]
    assert losses["loss_box_reg"].item() == pytest.approx(box / max(1, sum(central)) * box_weight)
    if make_detector is make_poto:
        assert losses.keys() == {"loss_cls", "loss_box_reg"}
    else:
        raw = torch.cat([level.centerness for level in predictions], dim=1)[foreground]
        entropy = F.binary_cross_entropy_with_logits(
            raw, torch.tensor(central, dtype=torch.float64), reduction="sum"
        )
        assert losses["loss_centerness"].item() == pytest.approx(entropy.item() / count)


def test_assignment_describes_the_matched_object():
    detector, batch = make_fcos().double(), make_batch([2, 1])
    _, assignment = detector.compute_losses(detector.extract_features(batch), batch)
    locations = torch.cat(
        [level.locations for level in detector._make_levels(detector.extract_features(batch))]
    )
    for image, a in (assignment.labels < 3).nonzero().tolist():
        x, y = locations[a].tolist()
        left, top, right, bottom = assignment.distances[image, a].tolist()
        box = torch.tensor([x - left, y - top, x + right, y + bottom], dtype=torch.float64)
        same = torch.isclose(batch.targets.boxes[image], box).all(dim=1)
        assert assignment.labels[image, a] in batch.targets.labels[image][same]
    background = assignment.labels == 3
    assert (assignment.distances[background] == 0).all()
    assert (assignment.weights[background] == 0).all()


def test_poto_matches_the_students_predictions_for_the_teacher_too():
    detector, batch = make_poto().double(), make_batch([3, 2])
    excite_head(detector)
    features = detector.extract_features(batch)
    taught = {level: torch.randn_like(x) for level, x in features.items()}
    _, assignment = detector.compute_losses(features, batch)
    _, of_teacher = detector.compute_losses(taught, batch)
    assert not torch.equal(of_teacher.labels, assignment.labels)
    losses, same = detector.compute_losses(taught, batch, assignment)
    assert same is assignment
    assert losses["loss_cls"] != detector.compute_losses(taught, batch)[0]["loss_cls"]


def test_factors_of_the_distances():
    """A head that predicts doubled distances, and factors of 2, give the same boxes and losses."""
    detector, batch = make_fcos().double(), make_batch([2, 1])
    excite_head(detector)
    expected, _ = detector.compute_losses(detector.extract_features(batch), batch)
    doubled = make_fcos(box_reg_weights=(2.0, 2.0, 2.0, 2.0)).double()
    doubled.load_state_dict(detector.state_dict())
    for scale in doubled.head.scales:
        torch.nn.init.constant_(scale.scale, 2)
    losses, _ = doubled.compute_losses(doubled.extract_features(batch), batch)
    for name, loss in losses.items():
        assert loss.item() == pytest.approx(expected[name].item(), rel=1e-12)


class TestNormalizers:
    def gradients(self, make_detector, batches):
        """Mean over the ranks, as distributed data parallel takes it."""
        detector = make_detector().double()
        excite_head(detector)
        total = 0
        for batch in batches:
            losses, _ = detector.compute_losses(detector.extract_features(batch), batch)
            total = total + sum(losses.values()) / len(batches)
        total.backward()
        return [p.grad for p in detector.parameters() if p.grad is not None]

    @pytest.mark.parametrize("make_detector", [make_fcos, make_atss, make_poto])
    @pytest.mark.parametrize("num_objects", [[3, 0, 2], [0, 0, 0]])
    def test_ranks_together_give_the_gradient_of_one(self, monkeypatch, make_detector, num_objects):
        batch = make_batch(num_objects)
        ranks = [slice_batch(batch, 0, 1), slice_batch(batch, 1, 3)]
        expected = self.gradients(make_detector, [batch])
        counts = []
        with monkeypatch.context() as patch:
            patch.setattr(points, "all_reduce_sum", lambda local: counts.append(local) or local)
            self.gradients(make_detector, ranks)
        monkeypatch.setattr(points, "all_reduce_sum", lambda local: sum(counts))
        monkeypatch.setattr(points, "get_world_size", lambda: 2)
        for ours, theirs in zip(self.gradients(make_detector, ranks), expected, strict=True):
            assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-12)

    @pytest.mark.parametrize("kind", ["not synchronised", "evaluation"])
    def test_stay_local(self, monkeypatch, kind):
        monkeypatch.setattr(points, "all_reduce_sum", lambda local: 1 / 0)
        detector = make_fcos(sync_normalizers=kind == "evaluation").train(kind != "evaluation")
        batch = make_batch([2])
        _, assignment = detector.compute_losses(detector.extract_features(batch), batch)
        assert assignment.num_foreground == (assignment.labels < 3).sum()
        assert assignment.sum_of_weights.item() == pytest.approx(max(1, assignment.weights.sum().item()))

    def test_are_at_least_one(self):
        detector, batch = make_fcos(), make_batch([0])
        _, assignment = detector.compute_losses(detector.extract_features(batch), batch)
        assert (assignment.num_foreground, assignment.sum_of_weights) == (1, 1)


def detect_slowly(detector, features, batch):
    """One level and image at a time, with the suppression written out."""
    results = []
    for image in range(len(batch.images)):
        candidates = []
        for (level, stride), prediction in zip(
            detector.strides.items(), detector.head(features), strict=True
        ):
            _, _, height, width = features[level].shape
            table = []
            for a, row in enumerate(prediction.logits[image].sigmoid().tolist()):
                x, y = (a % width + 0.5) * stride, (a // width + 0.5) * stride
                left, top, right, bottom = prediction.distances[image, a].tolist()
                central = None if prediction.centerness is None else prediction.centerness[image, a].sigmoid()
                for label, score in enumerate(row):
                    final = score if central is None else math.sqrt(score * central.item())
                    table.append((score, final, label, (x - left, y - top, x + right, y + bottom)))
            table.sort(reverse=True)
            best = table[: min(detector.topk_candidates_test, height * width)]
            candidates += [entry[1:] for entry in best if entry[0] > detector.score_thresh_test]
        threshold, kept = detector.nms_thresh_test, []
        for score, label, box in sorted(candidates, reverse=True):
            if threshold is None or all(label != c or overlap(box, b) <= threshold for _, c, b in kept):
                kept.append((score, label, box))
        height, width = batch.original_sizes[image].tolist()
        scale_y, scale_x = (batch.original_sizes[image] / batch.sizes[image]).tolist()
        final = []
        for score, label, (x1, y1, x2, y2) in kept[: detector.detections_per_image]:
            x1, x2 = (min(max(x * scale_x, 0), width) for x in (x1, x2))
            y1, y2 = (min(max(y * scale_y, 0), height) for y in (y1, y2))
            if x2 > x1 and y2 > y1:
                final.append((score, label, [x1, y1, x2, y2]))
        results.append(final)
    return results


@pytest.mark.parametrize("make_detector", [make_fcos, make_poto])
@pytest.mark.parametrize("nms", [0.6, None])
@pytest.mark.parametrize("topk", [30, 1000])
def test_detect_like_slowly(make_detector, nms, topk):
    detector = make_detector(
        topk_candidates_test=topk, detections_per_image=40, nms_thresh_test=nms, score_thresh_test=0.12
    )
    detector.double().eval()
    excite_head(detector)
    batch = make_batch([1, 1])
    features = {level: torch.randn_like(x) for level, x in detector.extract_features(batch).items()}
    for ours, slow in zip(
        detector.detect(features, batch), detect_slowly(detector, features, batch), strict=True
    ):
        assert len(slow) > 5
        assert ours.labels.tolist() == [label for _, label, _ in slow]
        assert ours.scores.tolist() == pytest.approx([score for score, _, _ in slow])
        assert torch.allclose(
            ours.boxes, torch.tensor([box for *_, box in slow], dtype=torch.float64), atol=1e-6
        )


def test_nothing_scores_enough():
    detector, batch = make_fcos().eval(), make_batch([1])
    (image,) = detector.detect(detector.extract_features(batch), batch)
    assert (image.boxes.shape, image.scores.shape, image.labels.shape) == ((0, 4), (0,), (0,))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"box_reg_weights": (1, 0, 1, 1)}, r"factors of the distances must be positive, not \(1, 0, 1, 1\)"),
        ({"channels": 17 * 8 + 1}, "GN of 137 channels does not divide into 32 groups"),
    ],
)
def test_errors(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make_fcos(**kwargs)
