"""From raw pixels to a model's input."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lgd.structures import Batch


class PixelNormalizer(nn.Module):
    """Subtracts a mean and divides by a deviation, channel by channel.

    Args:
        mean: (3,) in the images' channel order.
        std: (3,).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        # Kept in float64 until used, so that a float64 model gets these numbers unrounded.
        for name, values in (("mean", mean), ("std", std)):
            numbers = torch.tensor(list(values), dtype=torch.float64).view(-1, 1, 1)
            self.register_buffer(name, numbers, persistent=False)

    def forward(self, batch: Batch, dtype: torch.dtype) -> Tensor:
        """Return the images (B, 3, H, W) in `dtype` with mean 0 and deviation 1, 0 in the padding."""
        images = (batch.images.to(dtype) - self.mean.to(dtype)) / self.std.to(dtype)
        height, width = images.shape[-2:]
        rows = torch.arange(height, device=images.device) < batch.sizes[:, :1]
        columns = torch.arange(width, device=images.device) < batch.sizes[:, 1:]
        return torch.where(rows[:, None, :, None] & columns[:, None, None, :], images, 0)
