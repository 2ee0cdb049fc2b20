"""Every detector in every runtime: the detections of the file are those of the detector."""

import pytest
import torch

from lgd.export.check import HALF_TOLERANCE, Tolerance, compare, join_comparisons
from lgd.export.detector import ExportedDetector, export_program, write_program
from lgd.export.onnx import write_onnx
from lgd.export.runtimes import open_with_onnxruntime, open_with_openvino, open_with_torch
from lgd.structures import PaddedDetections
from lgd.weights.report import WeightsError
from tests.detectors.small import DETECTORS, excite_head, make_batch

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
SIZES = ((1, 128, 128), (3, 128, 256), (1, 64, 96), (3, 256, 384))


def make_detector(name):
    detector = DETECTORS[name]().eval()
    excite_head(detector)
    if hasattr(detector, "head"):
        # Scores of exactly 1 and boxes of thousands of pixels would compare roundings.
        for part in (detector.head.cls_score, detector.head.bbox_pred):
            torch.nn.init.normal_(part.weight, std=0.005)
    return detector


def limits_of(detector):
    part = getattr(detector, "roi_heads", detector)
    return {"score_threshold": part.score_thresh_test, "detections": part.detections_per_image}


def hold(detector, run, tolerance, sizes=SIZES):
    """Compare a file with the detector on batches of several sizes."""
    parts = []
    for count, height, width in sizes:
        batch = make_batch([1] * count, height=height, width=width, dtype=torch.float32)
        batch = batch.map(lambda x: x.round().clamp(0, 255).to(torch.uint8) if x.ndim == 4 else x)
        with torch.no_grad():
            expected = detector.detect(detector.extract_features(batch), batch)
        inputs = (batch.images.flip(1), batch.sizes, batch.original_sizes)
        found = PaddedDetections(*run(inputs)).cut()
        parts += [
            compare(*pair, tolerance, limits_of(detector)) for pair in zip(expected, found, strict=True)
        ]
    return join_comparisons(parts)


@pytest.fixture(scope="module", params=DETECTORS)
def exported(request):
    """A detector and its program for any batch and size."""
    detector = make_detector(request.param)
    model = ExportedDetector(detector, flips_channels=True)
    return detector, export_program(model, batch_size=None, size=None)


def test_onnx_in_both_runtimes(exported, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("openvino")
    (detector, program), path = exported, tmp_path / "model.onnx"
    write_onnx(program, path, {"about": "it"})
    for open_file in (open_with_onnxruntime, open_with_openvino):
        run, said = open_file(path, CPU)
        assert said["about"] == "it"
        found = hold(detector, run, Tolerance())
        assert found.matched > 100
        assert found.is_within(Tolerance()), found


def test_programs_of_torch(exported, tmp_path):
    (detector, program), path = exported, tmp_path / "model.pt2"
    write_program(program, path, {"about": "it"})
    run, said = open_with_torch(path, CPU)
    assert said == {"about": "it"}
    found = hold(detector, run, Tolerance())
    assert found.matched > 100
    assert found.is_within(Tolerance()), found


def test_no_size_is_a_term_of_several_minima(exported):
    """torch reads such terms for half a minute whenever it opens the file."""
    values = [node.meta.get("val") for node in exported[1].graph.nodes]
    sizes = {str(size) for x in values if isinstance(x, torch.Tensor) for size in x.shape}
    assert max(size.count("Min") for size in sizes) == 1
    outputs = exported[1].graph.output_node().args[0]
    assert {output.meta["val"].shape[1] for output in outputs} == {100}


def test_aot_inductor_makes_a_library(tmp_path):
    """It has made wrong code of programs that torch itself ran."""
    detector, path = make_detector("retinanet"), tmp_path / "model.pt2"
    program = export_program(ExportedDetector(detector, flips_channels=True), batch_size=None, size=None)
    write_program(program, path, {})
    package = str(tmp_path / "compiled.pt2")
    torch._inductor.aoti_compile_and_package(torch.export.load(path), package_path=package)
    compiled = torch._inductor.aoti_load_package(package)
    found = hold(detector, lambda inputs: compiled(*inputs), Tolerance())
    assert found.matched > 100
    assert found.is_within(Tolerance()), found


def test_half_is_near(tmp_path):
    pytest.importorskip("onnxruntime")
    detector = make_detector("faster_rcnn")
    program = export_program(
        ExportedDetector(detector, flips_channels=True, half=True), batch_size=None, size=(128, 256)
    )
    write_onnx(program, tmp_path / "model.onnx", {})
    found = hold(detector, open_with_onnxruntime(tmp_path / "model.onnx", CPU)[0], HALF_TOLERANCE, SIZES[1:2])
    assert found.matched > 10
    assert 1e-5 < found.score < 0.02


def test_equal_scores_keep_their_order(tmp_path):
    """On a flat picture whole regions score the same, and the first of them are found."""
    pytest.importorskip("onnxruntime")
    detector = make_detector("retinanet")
    torch.nn.init.zeros_(detector.head.cls_score.weight)
    torch.nn.init.constant_(detector.head.cls_score.bias, 20.0)  # all scores are 1
    model = ExportedDetector(detector, flips_channels=True)
    program = export_program(model, batch_size=None, size=(128, 256))
    write_onnx(program, tmp_path / "model.onnx", {})
    write_program(program, tmp_path / "model.pt2", {})
    inputs = (torch.full((2, 3, 128, 256), 90, dtype=torch.uint8), *[torch.tensor([[128, 256]] * 2)] * 2)
    with torch.no_grad():
        expected = PaddedDetections(*model(*inputs)).cut()
    for open_file, name in ((open_with_onnxruntime, "model.onnx"), (open_with_torch, "model.pt2")):
        found = PaddedDetections(*open_file(tmp_path / name, CPU)[0](inputs)).cut()
        for one, other in zip(expected, found, strict=True):
            assert len(one.scores) == 100
            assert torch.allclose(one.boxes, other.boxes, atol=1e-3)
            assert torch.equal(one.labels, other.labels)


def test_openvino_refuses_deformable_convolutions(tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("openvino")
    node = onnx.helper.make_node("DeformConv", ["x", "w", "o"], ["y"])
    tensors = [onnx.helper.make_tensor_value_info(name, 1, None) for name in "xwoy"]
    graph = onnx.helper.make_graph([node], "g", tensors[:3], tensors[3:])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "dcn.onnx")
    with pytest.raises(
        WeightsError, match=r"dcn.onnx: has deformable convolutions, which OpenVINO cannot run"
    ):
        open_with_openvino(tmp_path / "dcn.onnx", CPU)
