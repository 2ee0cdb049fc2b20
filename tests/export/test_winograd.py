"""3x3 convolutions of ONNX files by Winograd's way: which go it, and that they find the same."""

import pytest
import torch
from torch import nn

from lgd.export.onnx import write_onnx
from lgd.export.runtimes import open_with_onnxruntime, open_with_openvino
from lgd.export.winograd import convolve_tiles, mark_convolutions

onnxruntime = pytest.importorskip("onnxruntime")

CPU = torch.device("cpu")


class Net(nn.Module):
    """A map of a quarter of the canvas, one of an eighth, and one deep enough to be small."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 128, 3, stride=4, padding=1)
        self.large = nn.Conv2d(128, 160, 3, padding=1)
        self.grouped = nn.Conv2d(160, 160, 3, padding=1, groups=2)
        self.wide = nn.Conv2d(160, 128, 3, padding=2, dilation=2)
        self.narrow = nn.Conv2d(128, 36, 3, padding=1)
        self.coarser = nn.Conv2d(128, 128, 3, stride=2, padding=1)
        self.small = nn.Conv2d(128, 128, 3, padding=1, bias=False)

    def forward(self, images, sizes, original_sizes):
        x = self.stem(images.float() / 255)
        x = self.wide(self.grouped(self.large(x).relu()))
        return self.narrow(x) + 0 * (sizes.sum() + original_sizes.sum()), self.small(self.coarser(x))


def export(model, size=None, batch=None):
    num_images, (height, width) = batch or 2, size or (224, 160)
    images = torch.zeros(num_images, 3, height, width, dtype=torch.uint8)
    sizes = torch.tensor([[height, width]] * num_images)
    dynamic = torch.export.Dim.DYNAMIC
    axes = {0: dynamic} if batch is None else {}
    shapes = {"images": axes | ({2: dynamic, 3: dynamic} if size is None else {})}
    shapes |= {"sizes": axes, "original_sizes": axes}
    with torch.no_grad():
        return torch.export.export(model, (images, sizes, sizes.clone()), dynamic_shapes=shapes, strict=False)


def marks(program):
    """The weights of the convolutions that go the other way, and whether their maps are whole tiles."""
    nodes = [n for n in program.graph.nodes if n.target is torch.ops.lgd.convolve_tiles.default]
    return {node.args[1].name.removeprefix("p_").removesuffix("_weight"): node.args[3] for node in nodes}


def test_plain_deep_and_large_ones_go():
    for canvas, expected in (
        ((96, 96), {}),
        ((192, 160), {"large": True}),
        ((320, 320), {"large": True, "small": True}),
    ):
        program = export(Net(), canvas)
        mark_convolutions(program, canvas, 32)
        assert marks(program) == expected


def test_of_any_size_what_pictures_mostly_are_decides():
    program = export(Net())
    mark_convolutions(program, (320, 352), 16)
    assert marks(program) == {"large": True, "small": False}, "an eighth of 16 is no whole tile"


def test_the_operator_convolves():
    x, conv = torch.randn(2, 3, 5, 7), nn.Conv2d(3, 4, 3, padding=1)
    assert torch.equal(convolve_tiles(x, conv.weight, conv.bias, False), conv(x))


@pytest.mark.parametrize("runtime", ["onnxruntime", pytest.param("openvino", marks=pytest.mark.slow)])
def test_a_file_of_any_size_finds_the_same(runtime, tmp_path):
    pytest.importorskip(runtime)
    torch.manual_seed(0)
    net, path = Net(), tmp_path / "net.onnx"
    program = export(net)
    mark_convolutions(program, (320, 320), 16)
    assert len(marks(program)) == 2
    write_onnx(program, path, {})
    run, _ = {"onnxruntime": open_with_onnxruntime, "openvino": open_with_openvino}[runtime](path, CPU)
    for count, height, width in ((1, 128, 160), (3, 80, 112), (2, 16, 16)):
        images = torch.randint(256, (count, 3, height, width), dtype=torch.uint8)
        sizes = torch.tensor([[height, width]] * count)
        with torch.no_grad():
            expected = net(images, sizes, sizes)
        for ours, theirs in zip(run((images, sizes, sizes)), expected, strict=True):
            assert ours.shape == theirs.shape
            assert (ours - theirs).abs().max() < 2e-5 * theirs.abs().max()
