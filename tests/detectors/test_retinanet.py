import dataclasses
import math

import pytest
import torch

from lgd.detectors import retinanet
from lgd.ops.boxes import decode_deltas
from lgd.ops.losses import sigmoid_focal_loss
from lgd.structures import Batch, Targets
from tests.detectors.small import ANCHOR_SIZES, excite_head, make_batch, make_retinanet


def test_images_are_normalized_and_zero_in_the_padding():
    detector = make_retinanet().double()
    batch = dataclasses.replace(make_batch([1, 1]), images=torch.full((2, 3, 64, 96), 210, dtype=torch.uint8))
    images = detector.normalize(batch, torch.float64)
    assert images.dtype == torch.float64
    assert torch.equal(images[0, :, 0, 0], torch.tensor([110 / 50, 100 / 55, 90 / 60], dtype=torch.float64))
    height, width = batch.sizes[1].tolist()
    assert (images[1, :, :height, :width] != 0).all()
    assert (images[1, :, height:] == 0).all()
    assert (images[1, :, :, width:] == 0).all()


def test_float_pixels_are_taken_as_they_are():
    detector, batch = make_retinanet().double(), make_batch([1, 2])
    as_float = dataclasses.replace(batch, images=batch.images.float())
    assert torch.equal(detector.normalize(as_float, torch.float64), detector.normalize(batch, torch.float64))


def test_predictions_go_by_row_column_anchor():
    head = make_retinanet().head
    feature = torch.randn(2, 16, 3, 4)
    logits, deltas = head(feature)
    raw_logits, raw_deltas = (
        head.cls_score(head.cls_subnet(feature)),
        head.bbox_pred(head.bbox_subnet(feature)),
    )
    row, column, anchor, label = 2, 1, 5, 1
    index = (row * 4 + column) * 6 + anchor
    assert logits[1, index, label] == raw_logits[1, anchor * 3 + label, row, column]
    assert torch.equal(deltas[1, index], raw_deltas[1, anchor * 4 : anchor * 4 + 4, row, column])


def test_fresh_head_predicts_the_prior():
    head = make_retinanet(prior_prob=0.2).head
    assert head.cls_score.bias.sigmoid().allclose(torch.tensor(0.2))
    assert head.cls_score.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert head.cls_subnet[0].bias.abs().max() == 0


def assign_one_box(box, label=1):
    detector = make_retinanet().double()
    box = torch.tensor([[box]], dtype=torch.float64)
    targets = Targets(box, torch.tensor([[label]]), torch.ones(1, 1, dtype=torch.bool))
    features = {
        level: torch.zeros(1, 16, 64 // s or 1, 96 // s or 1) for level, s in detector.strides.items()
    }
    return detector.assign(features, targets), torch.cat(detector._make_anchors(features)), box[0, 0]


def test_assignment_of_a_box_that_is_an_anchor():
    side = ANCHOR_SIZES[1][0]
    box = [32 - side / 2, 16 - side / 2, 32 + side / 2, 16 + side / 2]
    assignment, anchors, box = assign_one_box(box)
    num_p3 = 8 * 12 * 6
    same = num_p3 + (1 * 6 + 2) * 6 + 1  # p4, row 1, column 2, first size, ratio 1
    assert torch.allclose(anchors[same], box)
    assert assignment.labels[0, same] == 1
    assert assignment.deltas[0, same].abs().max() < 1e-12
    foreground = (assignment.labels[0] >= 0) & (assignment.labels[0] < 3)
    assert torch.allclose(
        decode_deltas(anchors, assignment.deltas[0])[foreground], box.expand(foreground.sum(), 4)
    )
    assert (assignment.deltas[0][~foreground] == 0).all()
    assert {-1, 1, 3} == set(assignment.labels.unique().tolist())


def test_a_tiny_box_still_gets_its_best_anchor():
    assignment, _, _ = assign_one_box([40.0, 24.0, 41.0, 25.0], label=2)
    assert (assignment.labels == 2).any()


def test_losses_by_hand():
    detector, batch = make_retinanet(smooth_l1_beta=0.1).double(), make_batch([2, 1])
    features = detector.extract_features(batch)
    losses, assignment = detector.compute_losses(features, batch)
    predictions = [detector.head(x) for x in features.values()]
    logits, deltas = (torch.cat(parts, dim=1) for parts in zip(*predictions, strict=True))
    foreground = (assignment.labels >= 0) & (assignment.labels < 3)
    normalizer = 90 + 0.1 * foreground.sum().item()
    focal = sigmoid_focal_loss(logits, assignment.labels, alpha=0.25, gamma=2.0)
    errors = (deltas - assignment.deltas)[foreground].abs()
    box = torch.where(errors < 0.1, errors**2 / 0.2, errors - 0.05).sum()
    assert losses["loss_cls"].item() == pytest.approx(focal.item() / normalizer)
    assert losses["loss_box_reg"].item() == pytest.approx(box.item() / normalizer)
    assert detector.loss_normalizer.item() == pytest.approx(normalizer)


class TestNormalizer:
    def run(self, **kwargs):
        """Student's and teacher's call of one step; returns the detector, both losses, and the positives."""
        detector, batch = make_retinanet(**kwargs).double(), make_batch([2, 1])
        features = detector.extract_features(batch)
        losses, assignment = detector.compute_losses(features, batch)
        again, _ = detector.compute_losses(features, batch, assignment)
        sum([*losses.values(), *again.values()]).backward()
        num_foreground = ((assignment.labels >= 0) & (assignment.labels < 3)).sum().item()
        return detector, losses, again, num_foreground

    def test_advances_once_per_step(self):
        detector, losses, again, num_foreground = self.run()
        assert detector.loss_normalizer.item() == pytest.approx(90 + 0.1 * num_foreground)
        assert again == losses

    def test_reference_mode_advances_in_every_call(self):
        detector, losses, again, num_foreground = self.run(reference_normalizer=True)
        first = 90 + 0.1 * num_foreground
        second = 0.9 * first + 0.1 * num_foreground
        assert detector.loss_normalizer.item() == pytest.approx(second)
        assert (losses["loss_box_reg"] / again["loss_box_reg"]).item() == pytest.approx(second / first)

    def test_stands_still_in_evaluation(self):
        detector, batch = make_retinanet().eval(), make_batch([1])
        detector.compute_losses(detector.extract_features(batch), batch)
        assert detector.loss_normalizer.item() == 100

    def test_counts_at_least_one(self):
        detector, batch = make_retinanet(), make_batch([0])
        detector.compute_losses(detector.extract_features(batch), batch)
        assert detector.loss_normalizer.item() == pytest.approx(90.1)

    def test_is_saved(self):
        detector, *_ = self.run()
        other = make_retinanet().double()
        other.load_state_dict(detector.state_dict())
        assert other.loss_normalizer == detector.loss_normalizer

    def test_ranks_together_give_the_gradient_of_one(self, monkeypatch):
        def gradients(batches):
            """Mean over the ranks, as distributed data parallel takes it."""
            detector, total = make_retinanet().double(), 0
            for batch in batches:
                detector.loss_normalizer.fill_(100)
                losses, _ = detector.compute_losses(detector.extract_features(batch), batch)
                total = total + sum(losses.values()) / len(batches)
            total.backward()
            return [p.grad for p in detector.parameters() if p.grad is not None], detector.loss_normalizer

        batch = make_batch([2, 0, 1])
        expected, expected_normalizer = gradients([batch])
        detector = make_retinanet().double()
        _, assignment = detector.compute_losses(detector.extract_features(batch), batch)
        num_foreground = ((assignment.labels >= 0) & (assignment.labels < 3)).sum().double()
        monkeypatch.setattr(retinanet, "all_reduce_sum", lambda local: num_foreground)
        monkeypatch.setattr(retinanet, "get_world_size", lambda: 2)
        ours, normalizer = gradients([slice_batch(batch, 0, 1), slice_batch(batch, 1, 3)])
        assert normalizer == expected_normalizer
        for a, b in zip(ours, expected, strict=True):
            assert torch.allclose(a, b, rtol=1e-9, atol=1e-12)


def slice_batch(batch, start, stop):
    def cut(x):
        return (
            Targets(x.boxes[start:stop], x.labels[start:stop], x.valid[start:stop])
            if isinstance(x, Targets)
            else x[start:stop]
        )

    fields = ("images", "sizes", "original_sizes", "image_ids", "targets")
    return Batch(**{name: cut(getattr(batch, name)) for name in fields})


def detect_slowly(detector, features, batch):
    """One level and image at a time, with the suppression written out."""
    results = []
    anchors = detector._make_anchors(features)
    for image in range(len(batch.images)):
        candidates = []
        for level_anchors, feature in zip(anchors, features.values(), strict=True):
            logits, deltas = (x[0].detach() for x in detector.head(feature[image : image + 1]))
            boxes = decode_deltas(level_anchors, deltas).tolist()
            table = [
                (score, label, boxes[a])
                for a, row in enumerate(logits.sigmoid().tolist())
                for label, score in enumerate(row)
                if score > detector.score_thresh_test
            ]
            candidates += sorted(table, reverse=True)[: detector.topk_candidates_test]
        kept = []
        for score, label, box in sorted(candidates, reverse=True):
            if all(label != other or overlap(box, b) <= detector.nms_thresh_test for _, other, b in kept):
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


def overlap(a, b):
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = sum((c[2] - c[0]) * (c[3] - c[1]) for c in (a, b))
    return width * height / (areas - width * height)


def test_detect_like_slowly():
    detector = make_retinanet(topk_candidates_test=60, detections_per_image=40).double().eval()
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
    detector, batch = make_retinanet().eval(), make_batch([1])
    (image,) = detector.detect(detector.extract_features(batch), batch)
    assert (image.boxes.shape, image.scores.shape, image.labels.shape) == ((0, 4), (0,), (0,))


def test_state_names():
    names = set(make_retinanet().state_dict())
    assert {
        "backbone.stem.conv1.norm.running_var",
        "neck.fpn_lateral3.bias",
        "neck.top_block.p7.weight",
    } <= names
    assert {"head.cls_subnet.0.weight", "head.bbox_pred.bias", "loss_normalizer"} <= names
    assert not any("pixel" in name or "anchor" in name for name in names)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"anchor_sizes": [[32], [64]]}, "anchor_sizes has 2 rows for 5 levels; give 1 or 5"),
        ({"aspect_ratios": [[1.0]] * 3}, "aspect_ratios has 3 rows for 5 levels; give 1 or 5"),
        ({"anchor_sizes": [[32], [64], [9], [9], [9, 8]]}, r"equally many, not \[3, 3, 3, 3, 6\]"),
    ],
)
def test_errors(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make_retinanet(**kwargs)


def test_one_row_of_anchors_serves_every_level():
    detector = make_retinanet(anchor_sizes=[[32.0]], aspect_ratios=[[1.0]])
    assert detector.cell_anchors.shape == (5, 1, 4)
    assert (detector.cell_anchors == detector.cell_anchors[0]).all()
    assert math.isclose(detector.cell_anchors[0, 0, 2].item(), 16)
