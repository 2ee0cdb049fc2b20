"""3x3 convolutions with a third of the multiplications.

Source: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks (arXiv 1509.09308, section 4.3):
F(4x4, 3x3) takes 36 products for 16 outputs in place of 144. What it adds are two small matrix products and
two copies of each block of tiles, so that it pays where products are what costs: on a CPU, for maps that are
wide and deep enough. Rounding errors are about four times those of the usual sum.
Legend: B images, C channels in, O out; P = 36 points of a tile's transform, T tiles of a block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_STEP, _SIDE = 4, 6
"""Outputs of a tile along one axis, and the inputs that they see."""

_MAX_TILES = 128
"""Of a block: more would leave the processor's cache."""

_MIN_TILES, _MIN_CHANNELS = 100, 128
"""Below, the usual way is as fast: the transforms, or the transformed weight, are read for too little."""

_INPUT = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
_WEIGHT = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
_OUTPUT = (
    (1, 1, 1, 1, 1, 0),
    (0, 1, -1, 2, -2, 0),
    (0, 1, 1, 4, 4, 0),
    (0, 1, -1, 8, -8, 1),
)


def winograd_pays(x: Tensor, weight: Tensor) -> bool:
    """Whether `winograd_conv3x3` is the faster way to convolve `x` with `weight`, (O, C, 3, 3)."""
    grid = _Grid.of(x)
    return (
        x.is_cpu
        and x.dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and min(weight.shape[:2]) >= _MIN_CHANNELS
        and grid.images * grid.rows * grid.columns >= _MIN_TILES
    )


def winograd_conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolve with padding 1 and stride 1.

    Args:
        x: (B, C, H, W).
        weight: (O, C, 3, 3).
        bias: (O,), or None.

    Returns:
        (B, O, H, W), channels last in memory.
    """
    result: Tensor = _Convolution.apply(x, weight, bias)
    return result


def square_transforms() -> tuple[Tensor, Tensor, Tensor]:
    """The transforms of both axes, float64: of a tile (P, P), of a weight (P, 9), of outputs (16, P)."""
    like = torch.zeros(0, dtype=torch.float64)
    return _square(_INPUT, like), _square(_WEIGHT, like), _square(_OUTPUT, like)


@dataclass(frozen=True)
class _Grid:
    """The tiles of a map.

    Attributes:
        images: B.
        rows: tiles from top to bottom.
        columns: tiles from left to right.
    """

    images: int
    rows: int
    columns: int

    @classmethod
    def of(cls, x: Tensor) -> _Grid:
        return cls(x.shape[0], -(-x.shape[-2] // _STEP), -(-x.shape[-1] // _STEP))

    def blocks(self) -> Iterator[tuple[int, slice]]:
        """Yield (image, rows of tiles), each of about `_MAX_TILES`."""
        size = max(1, _MAX_TILES // self.columns)
        for image in range(self.images):
            for start in range(0, self.rows, size):
                yield image, slice(start, min(start + size, self.rows))


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        grid, kernel = _Grid.of(x), _transform_weight(weight)
        padded = _pad(x, grid)
        output = _empty_output(len(weight), x, grid)
        cells = output.permute(0, 2, 3, 1).view(grid.images, grid.rows, _STEP, grid.columns, _STEP, -1)
        to_points, to_outputs = _square(_INPUT, x), _square(_OUTPUT, x)
        for image, rows in grid.blocks():
            points = _transform(to_points, _tiles(padded, image, rows, grid))
            found = _transform(to_outputs, torch.bmm(points.transpose(0, 1), kernel).transpose(0, 1))
            found = found.view(-1, grid.columns, _STEP, _STEP, len(weight))
            cells[image, rows] = found.transpose(1, 2)
        if bias is not None:
            cells += bias
        if output.shape[2:] == x.shape[2:]:
            return output
        # A copy: what follows may write into it, which autograd allows for no view made here.
        return output[:, :, : x.shape[2], : x.shape[3]].clone(memory_format=torch.channels_last)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        grid, kernel = _Grid.of(x), _transform_weight(weight).transpose(1, 2)
        grad_tiles = _split(grad, grid)
        to_points, to_outputs = _square(_INPUT, x), _square(_OUTPUT, x)
        padded = _pad(x, grid) if needs_weight else None
        # A tile reaches two cells into the next: the last ones into a row and a column that nobody asks for.
        grad_x = x.new_zeros(grid.images, _STEP * (grid.rows + 1), _STEP * (grid.columns + 1), x.shape[1])
        grad_kernel = torch.zeros_like(kernel.transpose(1, 2))
        for image, rows in grid.blocks():
            block = grad_tiles[image, rows].transpose(1, 2).reshape(-1, _STEP**2, len(weight))
            grad_points = _transform(to_outputs.T, block).transpose(0, 1)
            if padded is not None:
                points = _transform(to_points, _tiles(padded, image, rows, grid))
                grad_kernel.baddbmm_(points.permute(1, 2, 0), grad_points)
            if needs_x:
                tiles = _transform(to_points.T, torch.bmm(grad_points, kernel).transpose(0, 1))
                _add_tiles(grad_x[image], tiles.view(-1, grid.columns, _SIDE, _SIDE, x.shape[1]), rows.start)
        return (
            grad_x[:, 1 : x.shape[2] + 1, 1 : x.shape[3] + 1].permute(0, 3, 1, 2) if needs_x else None,
            _transform_back(grad_kernel, weight) if needs_weight else None,
            grad.sum(dim=(0, 2, 3)) if needs_bias else None,
        )


def _square(matrix: tuple[tuple[float, ...], ...], like: Tensor) -> Tensor:
    """The transform of both axes of a tile, from that of one."""
    one = like.new_tensor(matrix)
    return torch.kron(one, one)


def _transform(matrix: Tensor, tiles: Tensor) -> Tensor:
    """(n, m) times each tile's (m, C): (T, n, C)."""
    # A product for each tile: MKL runs a single one, (n, m) times (m, T * C), on one thread only.
    return torch.bmm(matrix.expand(len(tiles), -1, -1), tiles)


def _transform_weight(weight: Tensor) -> Tensor:
    """(O, C, 3, 3) -> (P, C, O)."""
    taps = weight.permute(2, 3, 1, 0).reshape(9, -1)
    return (_square(_WEIGHT, weight) @ taps).view(_SIDE**2, weight.shape[1], -1)


def _transform_back(grad_kernel: Tensor, weight: Tensor) -> Tensor:
    """(P, C, O) -> (O, C, 3, 3), the gradient of `_transform_weight`."""
    taps = _square(_WEIGHT, weight).T @ grad_kernel.flatten(1)
    return taps.view(3, 3, weight.shape[1], -1).permute(3, 2, 0, 1)


def _empty_output(channels: int, x: Tensor, grid: _Grid) -> Tensor:
    """(B, O, 4 rows, 4 columns), channels last in memory."""
    shape = (grid.images, channels, _STEP * grid.rows, _STEP * grid.columns)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _pad(x: Tensor, grid: _Grid) -> Tensor:
    """(B, C, H, W) -> (B, 4 rows + 2, 4 columns + 2, C) with zeros around."""
    padded = x.new_zeros(grid.images, _STEP * grid.rows + 2, _STEP * grid.columns + 2, x.shape[1])
    padded[:, 1 : x.shape[2] + 1, 1 : x.shape[3] + 1] = x.permute(0, 2, 3, 1)
    return padded


def _tiles(padded: Tensor, image: int, rows: slice, grid: _Grid) -> Tensor:
    """Copy a block's tiles, which overlap: (T, P, C)."""
    of_image, row, cell, channel = padded.stride()
    size = (rows.stop - rows.start, grid.columns, _SIDE, _SIDE, padded.shape[-1])
    start = padded.storage_offset() + image * of_image + _STEP * rows.start * row
    tiles = padded.as_strided(size, (_STEP * row, _STEP * cell, row, cell, channel), start)
    return tiles.reshape(-1, _SIDE**2, padded.shape[-1])


def _split(grad: Tensor, grid: _Grid) -> Tensor:
    """(B, O, H, W) -> (B, rows, 4, columns, 4, O), zeros beyond the map."""
    extra = (0, 0, 0, _STEP * grid.columns - grad.shape[3], 0, _STEP * grid.rows - grad.shape[2])
    cells = grad.permute(0, 2, 3, 1)
    cells = F.pad(cells, extra) if any(extra) else cells.contiguous()
    return cells.view(grid.images, grid.rows, _STEP, grid.columns, _STEP, -1)


def _add_tiles(grad_x: Tensor, tiles: Tensor, start: int) -> None:
    """Add a block's tiles (rows, columns, 6, 6, C) to the padded map (H, W, C) that they were taken from."""
    num_rows, num_columns = tiles.shape[:2]
    band = grad_x[_STEP * start : _STEP * (start + num_rows + 1)]
    cells = band.view(num_rows + 1, _STEP, num_columns + 1, _STEP, -1).transpose(1, 2)
    rest = _SIDE - _STEP
    cells[:-1, :-1] += tiles[:, :, :_STEP, :_STEP]
    cells[1:, :-1, :rest] += tiles[:, :, _STEP:, :_STEP]
    cells[:-1, 1:, :, :rest] += tiles[:, :, :_STEP, _STEP:]
    cells[1:, 1:, :rest, :rest] += tiles[:, :, _STEP:, _STEP:]
