"""The pure parts of the benchmarks: tables, growth, what a ring sends."""

import importlib.util
import sys

import pytest

from tests.training import REPOSITORY

FOLDER = REPOSITORY / "benchmarks"


def load(name, monkeypatch):
    """A script of benchmarks/, as Python finds it when it is run: beside the others."""
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, f"benchmark_{name}", module)  # where its dataclasses look
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def report(monkeypatch):
    return load("report", monkeypatch)


def test_table(report):
    table = report.markdown_table(["a", "b"], [["x", 1.23456], ["y", None], ["z", 12345.6], ["w", 3]])
    assert table == "| a | b |\n|---|---|\n| x | 1.23 |\n| y | - |\n| z | 12346 |\n| w | 3 |"


def test_growth_of_constant_linear_and_square_costs(report):
    sizes = [1, 10, 100]
    assert report.growth(sizes, [5, 5, 5]) == [None, 0.0, 0.0]
    assert report.growth(sizes, [2, 20, 200])[1:] == pytest.approx([1, 1])
    assert report.growth(sizes, [3, 300, 30_000])[1:] == pytest.approx([2, 2])
    assert report.growth([4], [1.0]) == [None]


def test_numbers(report):
    assert report.numbers("1,10,100") == [1, 10, 100]
    with pytest.raises(Exception, match="below 1"):
        report.numbers("0,1")


def test_published_file(report, tmp_path, capsys):
    report.publish("Title", {"device": "abacus"}, ["a", "b"], [[1, 2.5]], tmp_path / "x.json", curves=[])
    printed = capsys.readouterr().out
    assert "Title" in printed
    assert "device abacus" in printed
    assert "| 1 | 2.5 |" in printed
    assert '"rows": [\n    {\n      "a": 1,\n      "b": 2.5' in (tmp_path / "x.json").read_text()


def test_machine(report):
    machine = report.describe_machine(extra="1.0")
    assert {"device", "torch", "lgd", "commit", "date", "extra"} <= set(machine)
    assert all(machine.values())


def test_bytes_of_a_ring(monkeypatch):
    scaling = load("scaling", monkeypatch)
    assert scaling.ring_bytes(100, 1) == 0
    assert scaling.ring_bytes(100, 2) == 100
    assert scaling.ring_bytes(100, 4) == 150


def test_rows_of_scaling(monkeypatch):
    scaling = load("scaling", monkeypatch)
    rows = scaling.make_rows({1: (2.0, 2.0, 2**20), 2: (2.5, 2.0, 2**20)}, batch=4)
    assert rows[0] == [1, 2.0, 2.0, 0.0, 2.0, 1.0, 1.0, 0.0]
    assert rows[1] == [2, 2.5, 2.0, 0.25, pytest.approx(3.2), pytest.approx(0.8), 1.0, 1.0]


def test_scorers_agree_and_find_their_own_detections(monkeypatch, tmp_path):
    evaluate = load("evaluate", monkeypatch)
    ground_truth = evaluate.make_ground_truth(6)
    path = tmp_path / "instances.json"
    path.write_text(evaluate.json.dumps(ground_truth))
    results = evaluate.make_detections(ground_truth, 20, with_masks=True)
    assert len(results) == 6 * 20
    (tmp_path / "results.json").write_text(evaluate.json.dumps(results))
    for iou_type in ("bbox", "segm"):
        ours = evaluate.score_ours_from_list(path, results, iou_type)
        assert 0 < ours < 100
        assert evaluate.score_beside(path, tmp_path / "results.json", iou_type)["AP"] == ours
        assert evaluate.score_pycocotools(path, results, iou_type) == pytest.approx(ours, abs=1e-9)


def test_dearest_operations(monkeypatch):
    profile_step = load("profile_step", monkeypatch)

    class Event:
        def __init__(self, key, count, self_cpu_time_total, flops=0):
            self.key, self.count, self.self_cpu_time_total = key, count, self_cpu_time_total
            self.flops = flops

    events = [Event("ProfilerStep*", 2, 9e9), *(Event(f"op{k}", 2, 1000.0 * k) for k in range(1, 5))]
    rows = profile_step.dearest(events, num_steps=2, on_cuda=False, limit=2)
    assert rows == [
        ["op4", 1.0, 2.0, 0.4, None],
        ["op3", 1.0, 1.5, 0.3, None],
        ["2 others", 2.0, 1.5, 0.3, None],
    ]
