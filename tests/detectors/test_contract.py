"""What every detector must do; a new one joins by a line in DETECTORS."""

import dataclasses

import pytest
import torch

from tests.detectors.small import excite_head, make_batch, make_retinanet

DETECTORS = {"retinanet": make_retinanet}


@pytest.fixture(params=list(DETECTORS))
def make_detector(request):
    return DETECTORS[request.param]


@pytest.fixture
def detector(make_detector):
    return make_detector().double()


def test_states_its_features(detector):
    batch = make_batch([1, 2])
    features = detector.extract_features(batch)
    assert list(features) == list(detector.strides)
    for level, stride in detector.strides.items():
        assert features[level].shape == (2, detector.channels, -(-64 // stride), -(-96 // stride))


@pytest.mark.parametrize("num_objects", [[0, 0], [0, 1], [1], [3, 1, 0]])
def test_losses_are_finite_scalars_and_reach_every_parameter(detector, num_objects):
    batch = make_batch(num_objects)
    losses, _ = detector.compute_losses(detector.extract_features(batch), batch)
    assert all(loss.shape == () and torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    missing = [name for name, p in detector.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []


def test_an_assignment_can_be_used_again(detector):
    batch = make_batch([2, 1])
    features = detector.extract_features(batch)
    detector.eval()
    losses, assignment = detector.compute_losses(features, batch)
    again, same = detector.compute_losses(features, batch, assignment)
    assert same is assignment
    assert again == losses


def test_unused_slots_and_padding_count_for_nothing(detector):
    """Whatever stands in them."""
    detector.eval()
    batch = make_batch([2, 0, 1])
    targets = batch.targets
    outside = (torch.arange(64)[:, None] >= batch.sizes[:, 0, None, None]) | (
        torch.arange(96) >= batch.sizes[:, 1, None, None]
    )
    other = dataclasses.replace(
        batch,
        images=torch.where(outside[:, None], 77, batch.images),
        targets=dataclasses.replace(
            targets,
            boxes=torch.where(targets.valid[..., None], targets.boxes, 17.0),
            labels=torch.where(targets.valid, targets.labels, 2),
        ),
    )
    losses, _ = detector.compute_losses(detector.extract_features(batch), batch)
    others, _ = detector.compute_losses(detector.extract_features(other), other)
    assert others == losses


def test_no_host_sync_in_training(make_detector):
    """Tensors without data: asking one for a value raises."""
    detector, batch = make_detector().to("meta"), make_batch([2, 1], dtype=torch.float32).to("meta")
    losses, _ = detector.compute_losses(detector.extract_features(batch), batch)
    sum(losses.values()).backward()


def test_detections(detector):
    excite_head(detector)
    batch = make_batch([1, 1])
    detections = detector.eval().detect(detector.extract_features(batch), batch)
    assert len(detections) == 2
    for image, size in zip(detections, batch.original_sizes.tolist(), strict=True):
        count = len(image.scores)
        assert 0 < count <= 100
        assert image.boxes.shape == (count, 4)
        assert image.labels.dtype == torch.int64
        assert set(image.labels.tolist()) <= {0, 1, 2}
        assert (image.scores.diff() <= 0).all()
        x1, y1, x2, y2 = image.boxes.unbind(1)
        assert (x1 >= 0).all()
        assert (y1 >= 0).all()
        assert (x2 > x1).all()
        assert (y2 > y1).all()
        assert (x2 <= size[1]).all()
        assert (y2 <= size[0]).all()


def test_backbone_parameters_are_the_backbone_without_the_neck(detector):
    names = {parameter: name for name, parameter in detector.named_parameters()}
    backbone = {names[parameter] for parameter in detector.backbone_parameters()}
    assert backbone == {name for name in names.values() if name.startswith("backbone.")}


def test_every_parameter_is_initialized(make_detector):
    torch.use_deterministic_algorithms(True)  # fills fresh memory with NaN
    try:
        detector = make_detector()
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.isfinite(tensor).all() for tensor in detector.state_dict().values())


def test_half_precision_autocast(make_detector):
    detector, batch = make_detector(), make_batch([2, 1], dtype=torch.float32)
    exact, _ = detector.compute_losses(detector.extract_features(batch), batch)
    detector = make_detector()
    with torch.autocast("cpu", torch.bfloat16):
        losses, _ = detector.compute_losses(detector.extract_features(batch), batch)
        detections = detector.detect(detector.extract_features(batch), batch)
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    assert detections[0].boxes.dtype == torch.float32
    for name, loss in losses.items():
        assert loss.item() == pytest.approx(exact[name].item(), rel=0.02)
