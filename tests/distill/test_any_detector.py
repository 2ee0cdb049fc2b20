"""The code that docs/any-detector.md shows is run as it stands there."""

import inspect
import re

import pytest
import torch
import torchvision

from lgd.detectors.protocol import Detector
from tests.detectors.small import make_batch
from tests.distill.torchvision_models import make_data, make_model
from tests.training import REPOSITORY

TORCHVISION, DETECTOR, TRAINING, ENGINE = re.findall(
    r"^```python\n(.*?)^```", (REPOSITORY / "docs/any-detector.md").read_text(), flags=re.M | re.S
)


def run(code, **given):
    torch.manual_seed(0)
    names = dict(given)
    exec(compile(code, "docs/any-detector.md", "exec"), names)
    return names


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_detector_of_torchvision(folder, monkeypatch):
    asked = {}

    def make_small(**arguments):
        asked.update(arguments)
        return make_model("faster_rcnn")

    monkeypatch.setattr(torchvision.models.detection, "fasterrcnn_resnet50_fpn", make_small)
    names = run(TORCHVISION, loader=[make_data("faster_rcnn", seed=seed) for seed in range(2)])
    assert asked == {"weights_backbone": "DEFAULT", "num_classes": 4}
    plain, fresh = make_model("faster_rcnn"), make_model("faster_rcnn")
    plain.load_state_dict(torch.load(folder / "student.pt", weights_only=True))
    assert any(not torch.equal(x, y) for x, y in zip(plain.parameters(), fresh.parameters(), strict=True))
    assert "loss_classifier.tea" in names["losses"]


def test_a_detector_of_ones_own_learns_and_the_engine_trains_it_on(folder, capsys):
    names = run(DETECTOR + TRAINING + "print('the engine')\n" + ENGINE)
    lines, _, reports = capsys.readouterr().out.partition("the engine\n")
    printed = [eval(line.partition(" ")[2]) for line in lines.splitlines()]
    assert list(printed[0]) == ["loss_cls", "loss_box", "loss_cls.tea", "loss_box.tea", "loss_distill"]
    totals = [sum(losses.values()) for losses in printed]
    assert sum(totals[-3:]) < 0.8 * sum(totals[:3])
    assert len(names["found"]) == 4
    assert all(each.scores.diff().max() <= 0 for each in names["found"])
    steps, later = zip(*(line.split() for line in reports.splitlines()), strict=True)
    assert steps == ("2", "4", "6")
    assert float(later[-1]) < totals[0] / 2
    saved = torch.load(folder / "last.pt", weights_only=True)
    assert {name.partition(".")[0] for name in saved["model"]} == {"student", "teacher", "adapter"}


def test_it_is_short_and_has_what_a_detector_must_have():
    assert len(DETECTOR.splitlines()) <= 60
    shown = run(DETECTOR)["CentreDetector"](num_classes=3)
    members = {name for name, _ in inspect.getmembers(Detector) if not name.startswith("_")} - {"decode"}
    assert [name for name in members if not hasattr(shown, name)] == []


@pytest.mark.parametrize("num_objects", [[2, 0, 1], [0, 0]])
def test_every_parameter_of_it_learns_from_every_batch(num_objects):
    detector = run(DETECTOR)["CentreDetector"](num_classes=3)
    batch = make_batch(num_objects, dtype=torch.float32)
    losses, _ = detector.compute_losses(detector.extract_features(batch), batch)
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in detector.parameters())


def test_the_cell_under_the_centre_answers():
    """With the answers in the maps the losses are small, and the objects are detected where they are."""
    detector = run(DETECTOR)["CentreDetector"](num_classes=3, channels=8)
    batch = make_batch([1], dtype=torch.float32)
    box = batch.targets.boxes[batch.targets.valid]
    label = int(batch.targets.labels[batch.targets.valid])
    column, row = ((box[0, :2] + box[0, 2:]) / 16).long().tolist()
    centre = torch.tensor([8 * column + 4, 8 * row + 4]).repeat(2)
    sides = ((box[0] - centre) * torch.tensor([-1, -1, 1, 1])) / 64
    detector.head = torch.nn.Identity()  # the maps are the predictions
    maps = torch.full((1, 7, 8, 12), -9.0)
    maps[0, label, row, column] = 9.0
    maps[0, 3:, row, column] = sides.expm1().log()
    losses, _ = detector.compute_losses({"p3": maps}, batch)
    assert losses["loss_cls"] < 1e-3
    assert losses["loss_box"] < 1e-3
    (found,) = detector.detect({"p3": maps}, batch)
    assert torch.allclose(found.boxes[0], 2 * box[0], atol=1e-3)
    assert found.labels[0] == label
