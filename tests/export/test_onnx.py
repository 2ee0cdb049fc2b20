import pytest
import torch

from lgd.export.detector import INPUTS, ExportedDetector, export_program
from lgd.export.onnx import write_onnx
from tests.detectors.small import DETECTORS, excite_head, make_batch

onnxruntime = pytest.importorskip("onnxruntime")


@pytest.mark.slow
@pytest.mark.parametrize("name", DETECTORS)
def test_onnxruntime_detects_what_torch_does(name, tmp_path):
    detector = DETECTORS[name]().eval()
    excite_head(detector)
    if hasattr(detector, "head"):
        # Scores of exactly 1 and boxes of thousands of pixels would compare roundings.
        for part in (detector.head.cls_score, detector.head.bbox_pred):
            torch.nn.init.normal_(part.weight, std=0.005)
    model = ExportedDetector(detector, flips_channels=True)
    program = export_program(model, batch_size=None, size=None)
    write_onnx(program, tmp_path / "model.onnx", {"classes": ["a", "b", "c"]})
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    assert session.get_modelmeta().custom_metadata_map["classes"] == '["a", "b", "c"]'
    for count, height, width in ((1, 128, 128), (3, 128, 256), (3, 256, 384)):
        batch = make_batch([1] * count, height=height, width=width, dtype=torch.float32)
        arguments = (batch.images, batch.sizes, batch.original_sizes)
        expected = model(*arguments)
        found = session.run(None, dict(zip(INPUTS, (x.numpy() for x in arguments), strict=True)))
        boxes, scores, labels, valid, *masks = (torch.from_numpy(x) for x in found)
        assert valid.any()
        assert torch.equal(valid, expected[3])
        # Scores that differ by a rounding may have changed places.
        near = (boxes[:, :, None] - expected[0][:, None]).abs().amax(dim=-1) < 1e-3
        near &= (scores[:, :, None] - expected[1][:, None]).abs() < 1e-4
        near &= labels[:, :, None] == expected[2][:, None]
        assert near.any(dim=1).all()
        assert near.any(dim=2).all()
        for mask, other in zip(masks, expected[4:], strict=True):
            assert (mask - other).abs().max() < 1e-3
