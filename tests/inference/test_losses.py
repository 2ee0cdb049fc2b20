"""Losses on a test set: image by image, whatever the batches, and nothing is changed by them."""

import pytest
import torch

from lgd.inference.detect import detect
from lgd.inference.losses import LossMeter, average_losses
from tests.test_ranks import make_batch, make_model

DETECTORS = {
    "RetinaNet": {},
    "FCOS": {"MODEL__META_ARCHITECTURE": "FCOS"},
    "ATSS": {"MODEL__META_ARCHITECTURE": "ATSS"},
    "POTO": {"MODEL__META_ARCHITECTURE": "POTO"},
    "GFL": {"MODEL__META_ARCHITECTURE": "GFL"},
    "two stages": {
        "MODEL__META_ARCHITECTURE": "GeneralizedRCNN",
        "MODEL__RPN__IN_FEATURES": "[p3, p4, p5, p6, p7]",
        "MODEL__ROI_HEADS__IN_FEATURES": "[p3, p4, p5, p6]",
    },
}


@pytest.fixture(params=DETECTORS, scope="module")
def model(request):
    return make_model(**DETECTORS[request.param]).eval()


@torch.no_grad()
def measure(model, parts):
    meter = LossMeter(model.student)
    for part in parts:
        batch = make_batch(*part)
        features = model.student.extract_features(batch)
        meter.add({"student": features, "teacher": model.teach(features, batch)}, batch)
    return meter.read()


@torch.no_grad()
def one_by_one(model):
    """The student's and the teacher's losses, by the plain calls of a training on single images."""
    columns = {}
    for index in range(4):
        batch = make_batch(index, index + 1)
        features = model.student.extract_features(batch)
        taught = model.teach(features, batch)
        torch.manual_seed(index)
        losses, assignment = model.student.compute_losses(features, batch)
        teachers, _ = model.student.compute_losses(taught, batch, assignment)
        for name, each in (("student", losses), ("teacher", teachers)):
            for key, value in each.items():
                columns.setdefault(name, {}).setdefault(key, []).append(value.item())
    return {name: {key: sum(values) / 4 for key, values in each.items()} for name, each in columns.items()}


def test_they_are_those_of_single_images(model):
    averages = average_losses([measure(model, [(0, 4)])])
    expected = one_by_one(model)
    assert list(averages) == ["student", "teacher"]
    for name, losses in expected.items():
        assert averages[name] == pytest.approx({"total_loss": sum(losses.values()), **losses}, rel=1e-9)
        assert all(value > 0 for value in averages[name].values())


def test_batches_and_ranks_make_no_difference(model):
    together = average_losses([measure(model, [(0, 4)])])
    ranks = average_losses([measure(model, [(2, 3), (3, 4)]), measure(model, [(0, 2)]), {}])
    for name, losses in together.items():
        assert ranks[name] == pytest.approx(losses, rel=1e-9)


def test_nothing_is_changed(model):
    before = {name: x.clone() for name, x in model.state_dict().items()}
    torch.manual_seed(7)
    expected = torch.rand(())
    torch.manual_seed(7)
    measure(model, [(0, 4)])
    assert torch.rand(()) == expected
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


def test_detections_come_with_their_losses():
    model = make_model().eval()
    batches = [make_batch(0, 2), make_batch(2, 4)]
    options = {"category_ids": [1, 2, 3], "device": torch.device("cpu"), "teach": model.teach}
    inference = detect(model.student, batches, **options, with_losses=True)
    assert inference.losses["student"].keys() == {"total_loss", "loss_cls", "loss_box_reg"}
    assert inference.losses["teacher"] != inference.losses["student"]
    assert detect(model.student, batches, **options).losses == {}


def test_averages_by_hand():
    parts = [{"student": {1: {"a": 1.0, "b": 4.0}}}, {"student": {2: {"a": 3.0, "b": 0.0}}}]
    assert average_losses(parts) == {"student": {"total_loss": 4.0, "a": 2.0, "b": 2.0}}
