"""GFL's losses against their definitions, location by location."""

import math

import pytest
import torch

from lgd.detectors.point_head import mean_bins
from lgd.detectors.protocol import DenseDetector
from lgd.distill.crosskd import CrossHeadImitation
from lgd.distill.distiller import Adapter, LabelGuidedDistiller
from lgd.distill.teacher import DynamicTeacher
from lgd.ops.losses import distribution_focal_loss, quality_focal_loss, soft_focal_loss
from tests.detectors.small import excite_head, make_batch, make_gfl


def softmax(logits):
    shares = [math.exp(x) for x in logits]
    return [x / sum(shares) for x in shares]


def slow_quality(logit, target, beta=2):
    p = 1 / (1 + math.exp(-logit))
    return abs(target - p) ** beta * -(target * math.log(p) + (1 - target) * math.log(1 - p))


def slow_distribution(logits, value):
    shares, last = softmax(logits), len(logits) - 1
    value = min(max(value, 0), last)
    below = min(math.floor(value), last - 1)
    return -((below + 1 - value) * math.log(shares[below]) + (value - below) * math.log(shares[below + 1]))


def slow_overlaps(a, b):
    """IoU and generalised IoU of two boxes around the origin, by their distances left top right bottom."""
    areas = [(x[0] + x[2]) * (x[1] + x[3]) for x in (a, b)]
    inner, outer = ([pick(pair) for pair in zip(a, b, strict=True)] for pick in (min, max))
    shared = max(inner[0] + inner[2], 0) * max(inner[1] + inner[3], 0)
    hull, union = (outer[0] + outer[2]) * (outer[1] + outer[3]), sum(areas) - shared
    return shared / union, shared / union - (hull - union) / hull


def test_quality_focal_loss_by_hand():
    logits = torch.tensor([[0.5, -1.0], [2.0, 0.1], [-3.0, 1.0]], dtype=torch.float64, requires_grad=True)
    labels, qualities = torch.tensor([1, 2, 0]), torch.tensor([0.7, 0.9, 0.0], dtype=torch.float64)
    loss = quality_focal_loss(logits, labels, qualities, beta=2)
    targets = [[0, 0.7], [0, 0], [0.0, 0]]  # the second is background, whatever its quality
    expected = sum(
        slow_quality(x, y)
        for row, wanted in zip(logits.tolist(), targets, strict=True)
        for x, y in zip(row, wanted, strict=True)
    )
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    same = soft_focal_loss(logits, torch.tensor(targets, dtype=torch.float64), beta=2)
    assert same.item() == pytest.approx(expected, rel=1e-12)
    gradients = [torch.autograd.grad(x, logits, retain_graph=True)[0] for x in (loss, same)]
    torch.testing.assert_close(*gradients)


def test_distribution_focal_loss_by_hand():
    logits = torch.tensor([[0.1, 0.5, -1.0, 2.0]] * 5, dtype=torch.float64)
    values = torch.tensor([0.0, 1.25, 3.0, 7.0, 2.0], dtype=torch.float64)  # 7 is taken for 3, the last
    weights = torch.tensor([1.0, 0.5, 1.0, 1.0, 0.0], dtype=torch.float64)
    expected = sum(
        weight * slow_distribution(row, value)
        for row, value, weight in zip(logits.tolist(), values.tolist(), weights.tolist(), strict=True)
    )
    assert distribution_focal_loss(logits, values, weights).item() == pytest.approx(expected, rel=1e-12)
    sure = torch.tensor([[0.0, 100.0, 0.0]])
    assert distribution_focal_loss(sure, torch.tensor([1.0]), torch.ones(1)).item() == pytest.approx(0)


def test_the_mean_of_a_distribution():
    assert mean_bins(torch.zeros(1, 17)).item() == pytest.approx(8)
    logits = [0.3, -1.0, 2.0]
    assert mean_bins(torch.tensor(logits)).item() == pytest.approx(
        sum(place * share for place, share in enumerate(softmax(logits)))
    )


@pytest.mark.parametrize("num_objects", [[2, 1], [0, 0]])
def test_losses_against_a_loop(num_objects):
    detector = make_gfl(side_loss_weight=0.3, box_loss_weight=1.7).double().eval()
    excite_head(detector)
    batch = make_batch(num_objects)
    features = detector.extract_features(batch)
    losses, assignment = detector.compute_losses(features, batch)
    levels = detector._predict(features)
    cls = box = sides = weight = 0.0
    count, offset = 0, 0
    for level, stride in zip(levels, detector.strides.values(), strict=True):
        for image in range(2):
            for place in range(level.logits.shape[1]):
                label = assignment.labels[image, offset + place].item()
                logits = level.logits[image, place].tolist()
                bins = level.sides[image, place].tolist()
                found = [stride * sum(k * s for k, s in enumerate(softmax(side))) for side in bins]
                wanted = assignment.distances[image, offset + place].tolist()
                scores = [1 / (1 + math.exp(-x)) for x in logits]
                targets = [0.0] * 3
                if label < 3:
                    targets[label], giou = slow_overlaps(found, wanted)
                    box += max(scores) * (1 - giou)
                    sides += max(scores) * sum(
                        slow_distribution(side, far / stride) for side, far in zip(bins, wanted, strict=True)
                    )
                    weight += max(scores)
                    count += 1
                cls += sum(slow_quality(x, y) for x, y in zip(logits, targets, strict=True))
        offset += level.logits.shape[1]
    assert (count > 0) == (num_objects != [0, 0])
    assert losses["loss_cls"].item() == pytest.approx(cls / max(count, 1), rel=1e-9)
    assert losses["loss_box_reg"].item() == pytest.approx(1.7 * box / max(weight, 1), rel=1e-6)
    assert losses["loss_dfl"].item() == pytest.approx(0.3 * sides / 4 / max(weight, 1), rel=1e-9)


def test_lgd_works_with_it_through_one_call_of_the_head_or_two():
    batch, results = make_batch([2, 1]), []
    for once in (False, True):
        student = make_gfl()
        torch.manual_seed(0)
        teacher = DynamicTeacher(channels=16, num_classes=3)
        distiller = LabelGuidedDistiller(
            student=student, teacher=teacher, adapter=Adapter(16), head_once=once
        ).double()
        losses = distiller(batch, distill=True)
        sum(losses.values()).backward()
        assert [n for n, p in distiller.named_parameters() if p.requires_grad and p.grad is None] == []
        results.append(losses)
    names = ["loss_cls", "loss_box_reg", "loss_dfl"]
    assert list(results[0]) == [*names, *(f"{name}.tea" for name in names), "loss_distill"]
    torch.testing.assert_close(*results)


def test_crosskd_distils_the_distributions():
    student, teacher = make_gfl(num_convs=2), make_gfl(num_convs=2)
    for seed, detector in enumerate((student, teacher)):
        torch.manual_seed(seed)
        for parameter in (*detector.neck.parameters(), *detector.head.parameters()):
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.1)
    model = CrossHeadImitation(student=student, teacher=teacher).double().eval()
    assert isinstance(student, DenseDetector)
    batch = make_batch([2, 1])
    features = student.extract_features(batch)
    _, assignment = student.compute_losses(features, batch)
    crossed = teacher.finish_head(student.begin_head(features, 1), 1).sides.flatten(0, 1).tolist()
    said = teacher._predict_joined([teacher.extract_features(batch)])[0].sides.flatten(0, 1).tolist()
    labels = assignment.labels.flatten().tolist()
    total, count = 0.0, 0
    for label, ours, theirs in zip(labels, crossed, said, strict=True):
        if label < 3:
            count += 1
            for logits, wanted in zip(ours, theirs, strict=True):
                pairs = zip(softmax(logits), softmax(wanted), strict=True)
                total += sum(q * math.log(q / p) for p, q in pairs) / 4
    assert count
    loss = model(batch, distill=True)["loss_distill_box"]
    assert loss.item() == pytest.approx(total / count, rel=1e-9)


def test_a_distribution_of_one_bin_is_refused():
    with pytest.raises(ValueError, match="at least 2 bins, not 1"):
        make_gfl(num_bins=1)
