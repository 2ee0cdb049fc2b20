"""What every detector must do; a new one joins by a line in DETECTORS, a full one by a line in RECIPES."""

import dataclasses
from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lgd.build.model import build_detector
from lgd.config.load import load_config
from lgd.detectors.protocol import OneStageDetector
from lgd.detectors.rcnn import RCNN
from lgd.distill.distiller import Adapter, LabelGuidedDistiller
from lgd.distill.head import head_parameters
from lgd.distill.teacher import DynamicTeacher
from tests.detectors.small import DETECTORS, excite_head, make_batch, with_masks
from tests.training import REPOSITORY

NEEDS_HOST = {"poto", "faster_rcnn", "mask_rcnn"}
"""Detectors that no training step does without the host: solving an assignment, NMS of proposals."""
RECIPES = [
    "retinanet/r50_1x_ss",
    "fcos/r50_2x_ms",
    "atss/r50_1x_ss",
    "poto/r50_3x_ms",
    "gfl/r50_1x_ss",
    "faster_rcnn/r50_2x_ms",
    "mask_rcnn/r50_1x_ms",
]
"""Full detectors, built from configs/."""


def make_crowd(corners, dtype):
    """300 objects of which the boxes' corners are these."""
    crowded = make_batch([300, 2], dtype=dtype)
    return with_boxes(crowded, crowded.targets.boxes[..., corners])


def make_images_of_33_pixels(dtype):
    small = make_batch([1, 2], height=64, width=64, dtype=dtype)
    side = torch.tensor([[33, 33], [33, 20]])
    return dataclasses.replace(
        with_boxes(small, small.targets.boxes.clamp(max=20)), sizes=side, original_sizes=side
    )


def with_boxes(batch, boxes):
    return dataclasses.replace(batch, targets=dataclasses.replace(batch.targets, boxes=boxes))


CONTENTS = {
    "no objects": partial(make_batch, [0, 0]),
    "one image without objects": partial(make_batch, [0, 1]),
    "one object": partial(make_batch, [1]),
    "different numbers": partial(make_batch, [3, 1, 0]),
    "300 objects": partial(make_crowd, [0, 1, 2, 3]),
    "boxes without area": partial(make_crowd, [0, 1, 0, 1]),
    "boxes without height": partial(make_crowd, [0, 1, 2, 1]),
    "images of 33 pixels": make_images_of_33_pixels,
}


def make_content(name, dtype=torch.float32):
    """A batch of a kind."""
    return with_masks(CONTENTS[name](dtype=dtype))


@pytest.fixture(params=list(DETECTORS))
def name(request):
    return request.param


@pytest.fixture
def make_detector(name):
    return DETECTORS[name]


@pytest.fixture
def detector(make_detector):
    return make_detector().double()


def compute_losses(detector, batch):
    """From the images to the losses, with the same random draws on every call."""
    torch.manual_seed(0)
    losses, _ = detector.compute_losses(detector.extract_features(batch), batch)
    return losses


def check_training(detector, batch):
    """Losses are finite scalars, and every parameter that trains gets a finite gradient from them."""
    losses = compute_losses(detector, batch)
    assert all(loss.shape == () and torch.isfinite(loss) for loss in losses.values())
    assert all(loss.dtype in (torch.float32, torch.float64) for loss in losses.values())
    sum(losses.values()).backward()
    trained = {name: p for name, p in detector.named_parameters() if p.requires_grad}
    assert [name for name, p in trained.items() if p.grad is None] == []
    assert [name for name, p in trained.items() if not torch.isfinite(p.grad).all()] == []


def check_detections(detector, batch):
    """Detections are sorted, inside their images and not empty; returns them."""
    detections = detector.eval().detect(detector.extract_features(batch), batch)
    assert len(detections) == len(batch.images)
    for image, (height, width) in zip(detections, batch.original_sizes.tolist(), strict=True):
        count = len(image.scores)
        assert count <= 100
        assert image.boxes.shape == (count, 4)
        assert image.boxes.dtype in (torch.float32, torch.float64)
        assert image.labels.dtype == torch.int64
        assert set(image.labels.tolist()) <= set(range(detector.num_classes))
        assert (image.scores.diff() <= 0).all()
        x1, y1, x2, y2 = image.boxes.unbind(1)
        assert (x1 >= 0).all()
        assert (y1 >= 0).all()
        assert (x2 > x1).all()
        assert (y2 > y1).all()
        assert (x2 <= width).all()
        assert (y2 <= height).all()
        assert (image.masks is not None) == has_masks(detector)
    return detections


def has_masks(detector):
    return isinstance(detector, RCNN) and detector.roi_heads.mask_head is not None


def test_states_its_features(detector):
    batch = make_batch([1, 2])
    features = detector.extract_features(batch)
    assert list(features) == list(detector.strides)
    for level, stride in detector.strides.items():
        assert features[level].shape == (2, detector.channels, -(-64 // stride), -(-96 // stride))


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("precision", ["float32", "float64", "bfloat16 autocast"])
def test_losses_reach_every_parameter(make_detector, content, precision):
    dtype = torch.float64 if precision == "float64" else torch.float32
    detector = make_detector().to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled="autocast" in precision):
        check_training(detector, make_content(content, dtype))


@pytest.mark.parametrize("content", CONTENTS)
def test_detects_whatever_the_objects(make_detector, content):
    detector = make_detector()
    excite_head(detector)
    check_detections(detector, make_content(content))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("part", ["", "neck", "head", "bbox"])
def test_weights_of_a_diverged_training(detector, part, value):
    """Losses show them, and the process lives; so it does when it detects."""
    weights = [p for name, p in detector.named_parameters() if part in name and p.requires_grad]
    batch = with_masks(make_batch([3, 1], dtype=torch.float64))
    with torch.no_grad():
        for weight in weights:
            weight.view(-1)[::7] = value
    losses = compute_losses(detector, batch)
    if weights and value != 1e30:
        assert not torch.isfinite(torch.stack(list(losses.values()))).all()
    with torch.no_grad():
        found = detector.eval().detect(detector.extract_features(batch), batch)
    assert len(found) == 2


def test_images_of_33_pixels_without_padding():
    batch = make_content("images of 33 pixels")
    for make_detector in DETECTORS.values():
        check_training(make_detector(), dataclasses.replace(batch, images=batch.images[..., :33, :33]))


def test_an_assignment_can_be_used_again(detector):
    batch = with_masks(make_batch([2, 1]))
    features = detector.extract_features(batch)
    detector.eval()
    losses, assignment = detector.compute_losses(features, batch)
    if assignment is not None:  # those that sample anew hand none back
        again, same = detector.compute_losses(features, batch, assignment)
        assert same is assignment
        assert again == losses


def test_unused_slots_and_padding_count_for_nothing(detector):
    """Whatever stands in them."""
    detector.eval()
    batch = with_masks(make_batch([2, 0, 1]))
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
    assert compute_losses(detector, other) == compute_losses(detector, batch)


def test_no_host_sync_in_training(name, make_detector):
    """Tensors without data: asking one for a value raises."""
    detector = make_detector().to("meta")
    batch = with_masks(make_batch([2, 1], dtype=torch.float32)).to("meta")
    if name in NEEDS_HOST:
        with pytest.raises((RuntimeError, NotImplementedError)):
            compute_losses(detector, batch)
    else:
        sum(compute_losses(detector, batch).values()).backward()


def test_detections(detector):
    excite_head(detector)
    for image in check_detections(detector, make_batch([1, 1])):
        assert len(image.scores) > 0


def test_backbone_parameters_are_the_backbone_without_the_neck(detector):
    names = {parameter: name for name, parameter in detector.named_parameters()}
    backbone = {names[parameter] for parameter in detector.backbone_parameters()}
    assert backbone == {name for name in names.values() if name.startswith("backbone.")}


def test_the_head_is_what_is_neither_backbone_nor_neck(detector):
    names = {name for name, _ in detector.named_parameters()}
    assert set(head_parameters(detector)) == {n for n in names if not n.startswith(("backbone.", "neck."))}


def test_every_parameter_is_initialized(make_detector):
    torch.use_deterministic_algorithms(True)  # fills fresh memory with NaN
    try:
        detector = make_detector()
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.isfinite(tensor).all() for tensor in detector.state_dict().values())


def test_half_precision_is_near_to_single(make_detector):
    batch = with_masks(make_batch([2, 1], dtype=torch.float32))
    exact = compute_losses(make_detector(), batch)
    detector = make_detector()
    with torch.autocast("cpu", torch.bfloat16):
        losses = compute_losses(detector, batch)
        check_detections(detector, batch)
    for name, loss in losses.items():
        assert loss.item() == pytest.approx(exact[name].item(), rel=0.02)


@pytest.mark.parametrize("num_objects", [[0, 0], [2, 1]])
def test_one_head_call_for_both_is_two(make_detector, num_objects):
    """Losses and gradients, also where the second features get none."""
    detectors = [make_detector().double() for _ in range(2)]
    if not isinstance(detectors[0], OneStageDetector):
        assert isinstance(detectors[0], RCNN)
        return
    batch = make_batch(num_objects)
    results = []
    for detector, once in zip(detectors, (False, True), strict=True):
        torch.manual_seed(0)
        excite_head(detector)
        features = detector.extract_features(batch)
        taught = {level: (x.detach() * 1.5 + 0.1).requires_grad_() for level, x in features.items()}
        if once:
            losses, of_taught = detector.compute_losses_of_both(features, taught, batch)
        else:
            losses, assignment = detector.compute_losses(features, batch)
            of_taught, _ = detector.compute_losses(taught, batch, assignment)
        (sum(losses.values()) + 2 * sum(of_taught.values())).backward()
        gradients = {name: p.grad for name, p in detector.named_parameters() if p.requires_grad}
        results.append((losses, of_taught, gradients, {level: x.grad for level, x in taught.items()}))
    torch.testing.assert_close(results[0], results[1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("training", [True, False])
def test_the_first_of_equal_images_stands_for_all(make_detector, training):
    detector = make_detector().double().train(training)
    if not isinstance(detector, OneStageDetector):
        assert isinstance(detector, RCNN)
        return
    excite_head(detector)
    one = make_batch([3])
    batch = one.map(lambda x: torch.cat([x, x]))
    features = detector.extract_features(batch)
    detector.compute_losses(features, batch)
    losses, assignment = detector.compute_losses(features, batch)
    first = {level: x[:1] for level, x in features.items()}
    of_first, _ = detector.compute_losses(first, batch.first(1), assignment.first(1))
    if training:
        torch.testing.assert_close(of_first, losses, rtol=1e-12, atol=0)
    again, _ = detector.compute_losses(features, batch, assignment.first(2))
    torch.testing.assert_close(again, detector.compute_losses(features, batch, assignment)[0], rtol=0, atol=0)


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_a_teacher_that_sees_some_of_the_images_trains_every_parameter(make_detector, share):
    torch.manual_seed(0)
    distiller = LabelGuidedDistiller(
        student=make_detector(), teacher=DynamicTeacher(channels=16, num_classes=3), adapter=Adapter(16),
        image_share=share,
    ).double()  # fmt: skip
    losses = distiller(with_masks(make_batch([2, 1, 3])), distill=True)
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert [name for name, p in distiller.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.fixture
def process_group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Losses(nn.Module):
    """A detector with its losses as the forward pass."""

    def __init__(self, detector):
        super().__init__()
        self.detector = detector

    def forward(self, batch):
        return compute_losses(self.detector, batch)


@pytest.mark.parametrize("num_objects", [[0, 0], [2, 1]])
def test_distributed_steps_without_search_for_unused_parameters(make_detector, process_group, num_objects):
    """A parameter without gradient makes the second step fail."""
    module = DistributedDataParallel(Losses(make_detector()))
    batch = with_masks(make_batch(num_objects, dtype=torch.float32))
    for _ in range(2):
        sum(module(batch).values()).backward()


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_full_size(recipe):
    cfg = load_config(REPOSITORY / "configs" / f"{recipe}.yaml")
    torch.manual_seed(0)
    detector = build_detector(cfg)
    for batch in map(make_content, CONTENTS):
        detector.zero_grad()
        check_training(detector.train(), batch)
        check_detections(detector, batch)
