"""3x3 convolutions of an ONNX file with a quarter of the products, of operators that every runtime has.

The CPU kernels of onnxruntime and OpenVINO sum up a 3x3 convolution as it is written, at the speed at which
the processor multiplies. Winograd's way (`lgd.layers.winograd`) is a convolution with constants, 36 matrix
products and a product with constants, which both of them run fast: large and deep maps take two thirds of
the time.
Legend: B images, C channels in, O out, H x W a map.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from lgd.data.canvases import Canvas
from lgd.layers.winograd import square_transforms

_STEP = 4
"""Outputs of a tile along one axis."""

_MIN_CHANNELS, _MIN_WORK = 128, 12_000
"""Least channels, and tiles times channels: below, reading the larger weight costs what it saves."""

_CONVOLUTION = torch.ops.aten.conv2d.default
_PLAIN = ([1, 1], [1, 1], [1, 1], 1)
"""Stride, padding, dilation and groups of those that can go this way."""


@torch.library.custom_op("lgd::convolve_tiles", mutates_args=())
def convolve_tiles(x: Tensor, weight: Tensor, bias: Tensor | None, is_whole: bool) -> Tensor:
    """Convolve with padding 1 and stride 1.

    An operator of its own, so that the ONNX exporter may put Winograd's way in its place.

    Args:
        x: (B, C, H, W).
        weight: (O, C, 3, 3).
        bias: (O,), or None.
        is_whole: whether H and W are always multiples of 4.

    Returns:
        (B, O, H, W).
    """
    return F.conv2d(x, weight, bias, padding=1)


@convolve_tiles.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, is_whole: bool) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0], x.shape[2], x.shape[3])


def mark_convolutions(program: torch.export.ExportedProgram, canvas: Canvas, multiple: int) -> None:
    """Put `convolve_tiles` into a program, in place, where it pays.

    Args:
        program: from `lgd.export.detector.export_program`.
        canvas: height and width of what the program is mostly given, pixels.
        multiple: of which every height and width are.
    """
    images = next(node for node in program.graph.nodes if node.op == "placeholder" and node.name == "images")
    given = images.meta["val"].shape[2:]
    for node in program.graph.nodes:
        if node.target is not _CONVOLUTION or not _is_plain(node):
            continue
        size = _size_on(node, given, canvas)
        if size is None or not _pays(node, size):
            continue
        some = (_size_on(node, given, (n * multiple, n * multiple)) for n in range(1, 2 * _STEP + 1))
        is_whole = all(side % _STEP == 0 for each in (size, *some) if each for side in each)
        bias = node.args[2] if len(node.args) > 2 else None
        node.target, node.args = torch.ops.lgd.convolve_tiles.default, (*node.args[:2], bias, is_whole)
    program.graph.lint()
    program.graph_module.recompile()


def _is_plain(node: fx.Node) -> bool:
    """Whether it is a 3x3 convolution of float32, of stride 1, that keeps the size."""
    x, weight = (cast(fx.Node, each).meta["val"] for each in node.args[:2])
    given = node.args[3:]
    settings = (*given, *([1, 1], [0, 0], [1, 1], 1)[len(given) :])
    plain = tuple(x if isinstance(x, int) else list(cast(Any, x)) for x in settings) == _PLAIN
    return plain and not node.kwargs and x.dtype == torch.float32 and list(weight.shape[2:]) == [3, 3]


def _pays(node: fx.Node, size: Canvas) -> bool:
    channels = min(cast(fx.Node, node.args[1]).meta["val"].shape[:2])
    tiles = -(-size[0] // _STEP) * -(-size[1] // _STEP)
    return bool(channels >= _MIN_CHANNELS and tiles * channels >= _MIN_WORK)


def _size_on(node: fx.Node, given: Any, canvas: Canvas) -> Canvas | None:
    """Height and width of what a convolution makes on a canvas; None where more than that decides."""
    symbols = {
        side.node.expr: number
        for side, number in zip(given, canvas, strict=True)
        if isinstance(side, torch.SymInt)
    }
    sides = [
        side.node.expr.xreplace(symbols) if isinstance(side, torch.SymInt) else side
        for side in node.meta["val"].shape[2:]
    ]
    if any(getattr(side, "free_symbols", None) for side in sides):
        return None
    return int(sides[0]), int(sides[1])


def make_translation() -> Mapping[Any, Callable[..., Any]]:
    """How the ONNX exporter writes `convolve_tiles`."""
    import onnx_ir
    import onnxscript

    op: Any = onnxscript.opset20
    to_points, from_taps, to_outputs = square_transforms()

    def constant(x: Tensor) -> Any:
        return op.Constant(value=onnx_ir.tensor(x.float().numpy()))

    def ints(*numbers: int) -> Any:
        return op.Constant(value_ints=list(numbers))

    def translate(x: Any, weight: Any, bias: Any, is_whole: bool) -> Any:
        out_channels, in_channels = weight.shape[:2]
        taps = op.Reshape(op.Transpose(weight, perm=[2, 3, 0, 1]), ints(9, -1))
        kernel = op.Reshape(op.MatMul(constant(from_taps), taps), ints(36, out_channels, in_channels))
        shape = op.Shape(x)
        images, size = op.Slice(shape, ints(0), ints(1)), op.Slice(shape, ints(2), ints(4))
        maps = op.Reshape(x, op.Concat(ints(-1, 1), size, axis=0))
        filters = constant(to_points.view(36, 1, 6, 6))
        # Behind the map one row and column are the convolution's, up to three fill the last tile.
        points = op.Conv(maps, filters, strides=[_STEP, _STEP], pads=[1, 1, _STEP, _STEP])
        grid = op.Slice(op.Shape(points), ints(2), ints(4))
        points = op.Reshape(points, op.Concat(images, ints(in_channels, 36, -1), axis=0))
        found = op.MatMul(kernel, op.Transpose(points, perm=[0, 2, 1, 3]))
        found = op.MatMul(constant(to_outputs), op.Reshape(found, op.Concat(images, ints(36, -1), axis=0)))
        found = op.Reshape(found, op.Concat(images, ints(_STEP**2 * out_channels), grid, axis=0))
        found = op.DepthToSpace(found, blocksize=_STEP, mode="DCR")
        if not is_whole:
            found = op.Slice(found, ints(0, 0), size, ints(2, 3))
        return found if bias is None else op.Add(found, op.Reshape(bias, ints(-1, 1, 1)))

    return {torch.ops.lgd.convolve_tiles.default: translate}
