"""torchvision's detectors with batches of ours, as the engine trains them, and on ranks."""

import dataclasses

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torchvision.models.detection.roi_heads import paste_masks_in_image

from lgd.detectors.protocol import Detector
from lgd.distill.distiller import PlainStudent
from lgd.distill.schedule import DistillSchedule
from lgd.distill.torchvision import TorchvisionDetector, wrap
from lgd.distill.torchvision_format import from_targets
from lgd.engine.loop import LoopOptions, Side, TrainState, train
from lgd.engine.optim import LRSchedule
from lgd.engine.progress import Progress
from tests.detectors.small import make_batch, with_masks
from tests.distill.torchvision_models import SMALL, losses_of, make_data, make_model

CPU = torch.device("cpu")
NUM_STEPS = 4


@pytest.fixture(params=list(SMALL))
def name(request):
    return request.param


def test_a_batch_of_ours_gives_the_losses_of_torchvisions_format(name):
    """So that the engine trains what wrap makes."""
    model = make_model(name, min_size=64, max_size=96)
    model.transform._skip_resize = True
    detector: Detector = TorchvisionDetector(model)
    batch = make_batch([2, 0, 1], dtype=torch.float32)
    if detector.rules.with_masks:
        batch = with_masks(batch)
    answers = from_targets(batch, detector.rules)
    images = [
        image[:, :height, :width] / 255
        for image, (height, width) in zip(batch.images, batch.sizes.tolist(), strict=True)
    ]
    expected = losses_of(model, images, answers)
    for answer, boxes, labels, valid, size in zip(
        answers, batch.targets.boxes, batch.targets.labels, batch.targets.valid, batch.sizes, strict=True
    ):
        assert torch.equal(answer["boxes"], boxes[valid])
        assert torch.equal(answer["labels"], labels[valid] + (1 if "rcnn" in name else 0))
        for mask, (x1, y1, x2, y2) in zip(answer.get("masks", []), answer["boxes"].tolist(), strict=False):
            assert list(mask.shape) == size.tolist()
            rows, columns = mask.nonzero().unbind(1)  # of a diamond, cut to the image
            assert x1 - 1 <= min(columns) <= max(columns) <= x2
            assert y1 - 1 <= min(rows) <= max(rows) <= y2
            assert 0.3 < mask.sum() / ((x2 - x1) * (y2 - y1)) < 0.7
    losses = losses_of(PlainStudent(detector), batch, distill=True)
    assert list(losses) == list(expected)
    assert all(abs(losses[key] - expected[key]).item() <= 1e-6 for key in expected)
    learned = losses_of(wrap(model).label_guided, batch, distill=True)
    assert all(abs(learned[key] - expected[key]).item() <= 1e-6 for key in expected)


def test_what_it_detects_in_a_batch_of_ours_is_what_torchvision_detects(name):
    model = make_model(name, min_size=64, max_size=96)
    detector = TorchvisionDetector(model)
    getattr(model, "roi_heads", model).score_thresh = 0.005
    batch = make_batch([1], dtype=torch.float32)  # of 64 x 96 pixels: torchvision's transform leaves it
    model.eval()
    with torch.no_grad():
        (expected,) = model(list(batch.images / 255))
    has_extent = (expected["boxes"][:, 2:] > expected["boxes"][:, :2]).all(dim=1)  # FCOS finds empty ones
    expected = {key: value[has_extent] for key, value in expected.items()}
    batch = dataclasses.replace(batch, original_sizes=batch.sizes)
    model.train()  # objects are detected in either mode
    model.backbone.eval()
    model.get_submodule("roi_heads" if "rcnn" in name else "head").eval()
    (found,) = detector.detect(detector.extract_features(batch), batch)
    assert len(expected["scores"]) > 5
    assert torch.allclose(found.boxes, expected["boxes"], atol=1e-4)
    assert torch.equal(found.scores, expected["scores"])
    assert torch.equal(found.labels + detector.rules.first_label, expected["labels"])
    assert (found.masks is None) == ("masks" not in expected)
    if found.masks is not None:
        pasted = paste_masks_in_image(found.masks[:, None], expected["boxes"], (64, 96))
        assert torch.equal(pasted, expected["masks"])
    twice = dataclasses.replace(batch, original_sizes=2 * batch.sizes)
    (larger,) = detector.detect(detector.extract_features(twice), twice)
    assert torch.allclose(larger.boxes, 2 * found.boxes, atol=1e-3)


@pytest.mark.parametrize("shift", ["no height", "no width"])
def test_boxes_without_extent_are_left_out(name, shift):
    detector = TorchvisionDetector(make_model(name))
    batch = with_masks(make_batch([2, 1], dtype=torch.float32))
    boxes = batch.targets.boxes.clone()
    slot = batch.targets.valid[0].nonzero()[0]
    sides = (3, 1) if shift == "no height" else (2, 0)
    boxes[0, slot, sides[0]] = boxes[0, slot, sides[1]]
    batch = dataclasses.replace(batch, targets=dataclasses.replace(batch.targets, boxes=boxes))
    assert [len(answer["boxes"]) for answer in from_targets(batch, detector.rules)] == [1, 1]
    losses, _ = detector.compute_losses(detector.extract_features(batch), batch)
    assert all(loss.isfinite() for loss in losses.values())


def test_masks_that_are_to_be_learnt_must_be_there():
    detector, batch = TorchvisionDetector(make_model("mask_rcnn")), make_batch([1], dtype=torch.float32)
    with pytest.raises(ValueError, match="learns masks and the targets have no outlines"):
        detector.compute_losses(detector.extract_features(batch), batch)


def make_state(name):
    model = wrap(make_model(name), use_masks=True).label_guided
    rate = LRSchedule(0.02, "WarmupMultiStepLR", (NUM_STEPS,), 0.1, 1.0, 0, "constant", NUM_STEPS)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.02, momentum=0.9)
    return TrainState(model, [Side("student", optimizer, rate)], Progress(CPU))


def train_to(state, steps):
    """Train by the engine, through all phases."""
    batches = (with_masks(make_batch([2, 1], seed=step, dtype=torch.float32)) for step in range(9))
    for _ in range(state.step):
        next(batches)
    train(
        state,
        batches,
        DistillSchedule(pre_nondistill=1, post_nondistill=0, pre_freeze=1, max_iter=NUM_STEPS, head_fixed=2),
        LoopOptions(max_iter=steps, images_per_step=2, log_period=100, clip_kind="norm"),
        device=CPU,
        report=lambda _: None,
        evaluate=lambda _: None,
        save=lambda *_: None,
    )
    return state.model.state_dict()


@pytest.mark.parametrize("name", ["fcos", "mask_rcnn"])
def test_the_engine_trains_it_and_goes_on_bit_by_bit(name):
    whole, first = make_state(name), make_state(name)
    begun = {key: x.clone() for key, x in whole.model.state_dict().items()}
    expected = train_to(whole, NUM_STEPS)
    assert [key for key, x in expected.items() if x.is_floating_point() and not x.isfinite().all()] == []
    moved = {key.split(".")[0] for key, x in expected.items() if not torch.equal(x, begun[key])}
    assert moved == {"student", "teacher", "adapter"}
    train_to(first, 2)
    resumed = make_state(name)
    resumed.load_state_dict(2, first.state_dict())
    for key, value in train_to(resumed, NUM_STEPS).items():
        assert torch.equal(value, expected[key]), key


@pytest.fixture
def process_group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("num_objects", [(0, 0), (2, 1)])
def test_distributed_steps_without_search_for_unused_parameters(name, process_group, num_objects):
    """A parameter without gradient makes the second step fail."""
    module = DistributedDataParallel(wrap(make_model(name)))
    for _ in range(2):
        sum(module(*make_data(name, num_objects)).values()).backward()
