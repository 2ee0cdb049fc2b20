"""Compiled detectors and exported files on a CPU: what runs when."""

import threading

import pytest
import torch

import lgd
from lgd import cli
from tests.tiny import write_tiny


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("weights") / "student.safetensors")


@pytest.fixture
def compiled_canvases(monkeypatch):
    """The shapes that compiled code is given, of images that torch computes as it usually does."""
    shapes = []

    def compile_(model, dynamic):
        assert not dynamic

        def run(images, *sizes):
            assert torch._inductor.config.freezing
            shapes.append(tuple(images.shape))
            return model(images, *sizes)

        return run

    monkeypatch.setattr(torch, "compile", compile_)
    monkeypatch.setattr("lgd.export.load._OFTEN", 4)
    monkeypatch.setattr("lgd.export.load._MOST_CANVASES", 2)
    return shapes


def pictures(number, height, width):
    return [torch.randint(0, 256, (3, height, width), dtype=torch.uint8) for _ in range(number)]


def test_the_first_canvas_and_usual_ones_have_code_of_their_own(weights, compiled_canvases):
    model, plain = lgd.load(weights, "cpu", "compile"), lgd.load(weights, "cpu")
    wide, tall, square = pictures(3, 64, 96), pictures(3, 96, 64), pictures(6, 64, 64)
    for some in (wide, tall, tall, tall, square):
        for one, other in zip(model.predict(some, 0.0105), plain.predict(some, 0.0105), strict=True):
            assert torch.allclose(one.boxes, other.boxes, atol=1e-3)
            assert torch.allclose(one.scores, other.scores, atol=1e-5)
    first, second = (1, 3, 64, 96), (1, 3, 96, 64)
    assert compiled_canvases == [first] * 3 + [second] * 6, "the second once it is usual, a third not"


@pytest.mark.slow
def test_onnxruntime_runs_parts_of_a_batch_at_once(weights, tmp_path, two_threads, monkeypatch):
    pytest.importorskip("onnxruntime")
    file = tmp_path / "student.onnx"
    assert cli.main(["export", str(weights), str(file), "--size", "64x96", "--batch", "1"]) == 0
    model, meeting = lgd.load(file, "cpu"), threading.Barrier(2, timeout=60)
    run, some = model.run, pictures(4, 64, 96)
    alone = model.predict(some, 0.0105, batch=1)

    def meet(batch):
        meeting.wait()  # passes only where two run at once
        return run(batch)

    monkeypatch.setattr(model, "run", meet)
    for one, other in zip(alone, model.predict(some, 0.0105, batch=2), strict=True):
        assert len(one) > 0
        assert torch.equal(one.boxes, other.boxes)
        assert torch.equal(one.scores, other.scores)
